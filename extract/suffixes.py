"""Which file names are videos, and which are extracted frames; hidden files are neither."""

import os

VIDEO_SUFFIXES = frozenset(
    {".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv"}
)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def is_video_name(name: str) -> bool:
    """Whether a file of this name is a video."""
    return _suffix(name) in VIDEO_SUFFIXES


def is_frame_name(name: str) -> bool:
    """Whether a file of this name is an extracted frame."""
    return _suffix(name) in IMAGE_SUFFIXES


def stem(name: str) -> str:
    """The name or path without a video extension; other dots and extensions stay."""
    root, suffix = os.path.splitext(name)
    return root if suffix.lower() in VIDEO_SUFFIXES else name


def _suffix(name: str) -> str:
    return "" if name.startswith(".") else os.path.splitext(name)[1].lower()
