"""Errors of reading a video, and the categories that the ledger records."""

from pathlib import Path
from typing import Any, Literal

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

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodeError, (self.category, self.path, self.detail)
