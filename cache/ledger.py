"""The ledger: which shards are data, how each of their videos went, and the digests that prove it.

One JSON line per committed shard, appended after the shard's features are safely in place; each field is a
list with one value per row, which reads faster than an object per row::

    {"shard": 3, "rows": [768, ...], "status": ["ok", ...], ..., "sha256": {"final": HEX, ...}, "line": HEX}

The class texts have a line of their own, shard -1 without rows: ``"sha256": {"text": HEX}``.

``sha256`` is over the values of the shard's rows in a layer (little endian, C order), so it is the same in
every container; ``line`` is over the bytes of the line before it. A shard's later lines replace earlier
ones.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipspm.cache.spec import Split, VideoRecord
from clipspm.errors import ClipspmError

#: what a shard's outcome adds to the plan's record of a video, in the order of the record's fields
OUTCOME_FIELDS = ("status", "category", "error", "frames", "fps", "indices", "pts_seconds", "backend")

#: the number under which the ledger keeps the digest of the class texts
TEXT_SHARD = -1

#: what comes between a line's content and its digest
_MARK = b', "line": "'


@dataclass(frozen=True)
class Entry:
    """One committed shard: the values of :data:`OUTCOME_FIELDS` for each row, and a digest per layer."""

    shard: int
    rows: Sequence[int]
    outcomes: Sequence[tuple[Any, ...]]
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, shard: int, records: Mapping[int, VideoRecord], sha256: Mapping[str, str]) -> "Entry":
        """An entry from records by row."""
        rows = sorted(records)
        outcomes = [tuple(getattr(records[row], name) for name in OUTCOME_FIELDS) for row in rows]
        return cls(shard, rows, outcomes, dict(sha256))

    @classmethod
    def of_text(cls, text: np.ndarray) -> "Entry":
        """The line of the class texts [C, P, D]."""
        return cls(TEXT_SHARD, (), (), {"text": values_digest(text)})

    def to_line(self) -> bytes:
        """The line with its own digest."""
        columns = dict(zip(OUTCOME_FIELDS, map(list, zip(*self.outcomes, strict=True)), strict=False))
        content = {"shard": self.shard, "rows": list(self.rows), **columns, "sha256": self.sha256}
        body = json.dumps(content).encode("ascii")[:-1]
        return body + _MARK + hashlib.sha256(body).hexdigest().encode("ascii") + b'"}\n'

    @classmethod
    def from_line(cls, line: bytes) -> "Entry":
        """Read :meth:`to_line`'s output, without the line's end; ValueError or KeyError if it is damaged."""
        body, _, digest = line.rpartition(_MARK)
        if digest != hashlib.sha256(body).hexdigest().encode("ascii") + b'"}':
            raise ValueError("the line does not match its digest")
        raw = json.loads(body + b"}")
        for name in ("indices", "pts_seconds") if raw["rows"] else ():
            raw[name] = map(tuple, raw[name])
        columns = [raw[name] for name in OUTCOME_FIELDS] if raw["rows"] else []
        return cls(raw["shard"], raw["rows"], list(zip(*columns, strict=True)), raw["sha256"])

    def records(self, planned: Sequence[VideoRecord]) -> dict[int, VideoRecord]:
        """The records of its rows, given the plan's."""
        found = {}
        for row, outcome in zip(self.rows, self.outcomes, strict=True):
            video = planned[row]
            found[row] = VideoRecord(video.id, video.path, video.class_name, video.split, *outcome)
        return found


def read_ledger(data: bytes) -> tuple[list[Entry], list[int]]:
    """The entries in order, and the numbers (from 1) of lines that are damaged.

    A torn last line, as a killed writer leaves it, is neither: it was never committed.
    """
    entries, damaged = [], []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            entries.append(Entry.from_line(line))
        except (ValueError, KeyError, TypeError):
            damaged.append(number)
    return entries, damaged


def apply(entries: Iterable[Entry], planned: Sequence[tuple[str, str, str, Split]]) -> list[VideoRecord]:
    """One record per planned video (id, path, class name, split), with what the entries say of it.

    A row that is not planned is an error.
    """
    known: dict[int, tuple[Any, ...]] = {}
    for entry in entries:
        known.update(zip(entry.rows, entry.outcomes, strict=True))
    if known and not 0 <= min(known) <= max(known) < len(planned):
        raise ClipspmError(f"the ledger speaks of rows beyond the {len(planned)} planned videos")
    return [VideoRecord(*video, *known.get(row, ())) for row, video in enumerate(planned)]


def digests(entries: Iterable[Entry]) -> dict[int, Mapping[str, str]]:
    """The digests that hold, by shard."""
    return {entry.shard: entry.sha256 for entry in entries}


def shards(videos: int, size: int) -> list[range]:
    """The rows of each shard."""
    return [range(start, min(start + size, videos)) for start in range(0, videos, size)]


def values_digest(values: np.ndarray) -> str:
    """SHA-256 over an array's values, little endian, in C order."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.data.cast("B") if little.size else b"").hexdigest()


def dump_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines, ASCII only, so that any file name survives."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")


def load_lines(data: bytes) -> list[Any]:
    """Read :func:`dump_lines`; a torn last line (a killed writer) is not data and is left out."""
    lines = data.split(b"\n")[:-1]
    return list(json.loads(b"[" + b",".join(lines) + b"]"))
