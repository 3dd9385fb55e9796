"""Scripts that made the data files of the package; not installed with it."""
