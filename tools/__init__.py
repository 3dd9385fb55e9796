"""What made the data files of the package; not part of what is installed."""
