"""Other packages' interfaces over `optlayer.solve`, for existing code."""
