"""What knows no array library: statuses, settings, structure, and the border to the compiled core."""
