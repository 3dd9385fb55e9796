"""Errors of reading a video, and the categories that the ledger records."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from clipspm.cache.spec import VideoRecord
from clipspm.errors import ClipspmError

Category = Literal[
    "missing",
    "unreadable",
    "no video stream",
    "wrong format",
    "points elsewhere",
    "too short",
    "wrong size",
    "too large",
    "out of memory",
    "timeout",
    "crashed",
]


class DecodeError(ClipspmError):
    """A video whose frames cannot be read; ``category`` is the kind of reason, ``detail`` the rest."""

    def __init__(self, category: Category, path: Path, detail: str) -> None:
        self.category: Category = category
        self.detail = detail
        self.path = path
        super().__init__(f"{category}: {path}: {detail}")

    def recorded(self, video: VideoRecord) -> VideoRecord:
        """Return the record of ``video`` as one that failed for this reason."""
        return replace(video, status="failed", category=self.category, error=self.detail)

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodeError, (self.category, self.path, self.detail)
