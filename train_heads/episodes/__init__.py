"""The videos of a split, the episodes drawn from them, and the features that are gathered for them."""
