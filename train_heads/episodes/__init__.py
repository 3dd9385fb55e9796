"""The videos of a split, episodes drawn from them, and the features gathered for these."""
