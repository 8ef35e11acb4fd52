"""Optimisation as a layer: batches of quadratic programs, solved and differentiated exactly."""

__version__ = "0.1.0"
