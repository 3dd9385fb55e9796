"""The ledger: which shards are committed, the outcome of each of their videos, and the shards' digests.

One JSON line per committed shard, appended after the shard's features are on the disk; each field is a list
with one value per row, which reads faster than an object per row::

    {"shard": 3, "rows": [768, ...], "status": ["ok", ...], ..., "sha256": {"final": HEX, ...}, "line": HEX}

The class texts have their own line, shard -1 without rows: ``"sha256": {"text": HEX}``.

``sha256`` covers the values of the shard's rows in a layer (little endian, C order), so it is the same in
every container; ``line`` covers the bytes of the line up to itself. A shard's later lines replace earlier
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

#: the fields of :class:`VideoRecord` that extraction fills in, in the record's order
OUTCOME_FIELDS = ("status", "category", "error", "frames", "fps", "indices", "pts_seconds", "backend")

#: the shard number of the ledger line with the digest of the class texts
TEXT_SHARD = -1

#: separates a line's content from its digest
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
        """Build an entry from records by row."""
        rows = sorted(records)
        outcomes = [tuple(getattr(records[row], name) for name in OUTCOME_FIELDS) for row in rows]
        return cls(shard, rows, outcomes, dict(sha256))

    @classmethod
    def of_text(cls, text: np.ndarray) -> "Entry":
        """Build the entry of the class texts [C, P, D]."""
        return cls(TEXT_SHARD, (), (), {"text": values_digest(text)})

    def to_line(self) -> bytes:
        """The entry as a ledger line with its digest."""
        columns = dict(zip(OUTCOME_FIELDS, map(list, zip(*self.outcomes, strict=True)), strict=False))
        content = {"shard": self.shard, "rows": list(self.rows), **columns, "sha256": self.sha256}
        body = json.dumps(content).encode("ascii")[:-1]
        return body + _MARK + hashlib.sha256(body).hexdigest().encode("ascii") + b'"}\n'

    @classmethod
    def from_line(cls, line: bytes) -> "Entry":
        """Read :meth:`to_line`'s output without the line end; raises ValueError or KeyError if damaged."""
        body, _, digest = line.rpartition(_MARK)
        if digest != hashlib.sha256(body).hexdigest().encode("ascii") + b'"}':
            raise ValueError("the line does not match its digest")
        raw = json.loads(body + b"}")
        for name in ("indices", "pts_seconds") if raw["rows"] else ():
            raw[name] = map(tuple, raw[name])
        columns = [raw[name] for name in OUTCOME_FIELDS] if raw["rows"] else []
        return cls(raw["shard"], raw["rows"], list(zip(*columns, strict=True)), raw["sha256"])

    def records(self, planned: Sequence[VideoRecord]) -> dict[int, VideoRecord]:
        """The record of each of its rows, given the ``planned`` records of all rows."""
        found = {}
        for row, outcome in zip(self.rows, self.outcomes, strict=True):
            video = planned[row]
            found[row] = VideoRecord(video.id, video.path, video.class_name, video.split, *outcome)
        return found


def read_ledger(data: bytes) -> tuple[list[Entry], list[int]]:
    """Parse a ledger. Returns the entries in order, and the numbers (from 1) of damaged lines.

    An incomplete last line, left by a killed writer, is ignored: it was never committed.
    """
    entries, damaged = [], []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            entries.append(Entry.from_line(line))
        except (ValueError, KeyError, TypeError):
            damaged.append(number)
    return entries, damaged


def apply(entries: Iterable[Entry], planned: Sequence[tuple[str, str, str, Split]]) -> list[VideoRecord]:
    """One record per planned video (id, path, class name, split), filled in from the entries.

    Raises :class:`ClipspmError` if an entry has a row that is not planned.
    """
    known: dict[int, tuple[Any, ...]] = {}
    for entry in entries:
        known.update(zip(entry.rows, entry.outcomes, strict=True))
    if known and not 0 <= min(known) <= max(known) < len(planned):
        raise ClipspmError(f"the ledger has rows beyond the {len(planned)} planned videos")
    return [VideoRecord(*video, *known.get(row, ())) for row, video in enumerate(planned)]


def digests(entries: Iterable[Entry]) -> dict[int, Mapping[str, str]]:
    """The current digests (layer -> digest) of each shard."""
    return {entry.shard: entry.sha256 for entry in entries}


def shards(videos: int, size: int) -> list[range]:
    """The rows of each shard."""
    return [range(start, min(start + size, videos)) for start in range(0, videos, size)]


def values_digest(values: np.ndarray) -> str:
    """SHA-256 over an array's values, little endian, in C order."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.data.cast("B") if little.size else b"").hexdigest()


def dump_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines in ASCII, which can hold any file name."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")


def load_lines(data: bytes) -> list[Any]:
    """Read :func:`dump_lines`'s output, without an incomplete last line left by a killed writer."""
    lines = data.split(b"\n")[:-1]
    return list(json.loads(b"[" + b",".join(lines) + b"]"))
