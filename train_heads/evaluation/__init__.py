"""Scores of test episodes, the statistics of them, and the guards against leaks."""
