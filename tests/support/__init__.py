"""What several tests use: made caches and videos, the command line, recorded tensors, mischief."""
