"""File names that count as videos and as frames of one; hidden files count as neither."""

import os

VIDEO_SUFFIXES = frozenset(
    {".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv"}
)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def is_video_name(name: str) -> bool:
    """Whether a file of this name is taken for a video."""
    return _suffix(name) in VIDEO_SUFFIXES


def is_frame_name(name: str) -> bool:
    """Whether a file of this name is taken for an extracted frame."""
    return _suffix(name) in IMAGE_SUFFIXES


def stem(name: str) -> str:
    """The name or path without a video's extension; a name may hold other dots."""
    root, suffix = os.path.splitext(name)
    return root if suffix.lower() in VIDEO_SUFFIXES else name


def _suffix(name: str) -> str:
    return "" if name.startswith(".") else os.path.splitext(name)[1].lower()
