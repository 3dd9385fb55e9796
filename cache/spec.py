"""What a cache holds and what its numbers depend on.

Shapes: N videos, V views, T frames, D feature width, C classes, P prompt templates.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from clipspm.errors import ClipspmError
from clipspm.settings import typed

#: raised whenever a reader of today could misread what a writer of tomorrow writes
FORMAT_VERSION = 3

#: the files of a Zarr cache, which an HDF5 one holds as arrays of the same names
SPEC, CLASSES, VIDEOS, LEDGER = "spec.json", "classes.json", "videos.jsonl", "ledger.jsonl"
BLOBS = (SPEC, CLASSES, VIDEOS, LEDGER)

Split = Literal["train", "val", "test", "none"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "none")
#: the layer that every cache holds: the encoder's embedding of each frame
FINAL = "final"
Format = Literal["zarr", "hdf5"]
ExportFormat = Literal["npz", "safetensors"]
Status = Literal["ok", "failed", "pending"]
#: name, split, and how many videos there are where the data set is complete
PlannedClass = tuple[str, Split, int]

#: told for the reader's sake; the numbers do not depend on them
_INFORMATIVE = frozenset({"model", "pretrained", "created_with"})


def format_of(path: Path) -> Format:
    """The format that a name asks for: ``.h5`` or ``.hdf5`` is HDF5, anything else Zarr."""
    return "hdf5" if path.suffix.lower() in (".h5", ".hdf5") else "zarr"


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Everything that the numbers in a cache depend on, and the names behind it.

    ``weights_sha256`` and ``architecture_sha256`` identify the encoder whatever it was called.
    ``resized_by``: Pillow in the decoders, or torch on the encoder's device.
    """

    dataset: str
    model: str
    pretrained: str
    architecture_sha256: str
    weights_sha256: str
    activation: str
    precision: str
    layers: tuple[str, ...]
    dims: dict[str, int]
    frames: int
    views: int
    flip: bool
    resize: int
    crop: int
    interpolation: str
    resized_by: Literal["pillow", "torch"] = "pillow"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prompts: tuple[str, ...]
    store_dtype: Literal["fp16", "fp32"] = "fp16"
    min_frames: int = 1
    format_version: int = FORMAT_VERSION
    created_with: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that changes the numbers, 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode()).hexdigest()

    def _identity(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in _INFORMATIVE}

    def differences(self, other: "CacheSpec") -> list[str]:
        """The fields in which two fingerprints differ, one readable line each."""
        mine, theirs = self._identity(), other._identity()
        return [f"{k}: {mine[k]} != {theirs[k]}" for k in mine if mine[k] != theirs[k]]

    def to_json(self) -> str:
        """The spec with its fingerprint, as JSON."""
        return json.dumps({**asdict(self), "fingerprint": self.fingerprint}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "CacheSpec":
        """Read :meth:`to_json`'s output; a fingerprint that does not match its fields is an error."""
        raw = json.loads(text)
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            raise ClipspmError(f"cache format {version} found, this version reads format {FORMAT_VERSION}")
        spec = cls(**typed({f.name: raw[f.name] for f in fields(cls)}, get_type_hints(cls)))
        if raw.get("fingerprint") != spec.fingerprint:
            raise ClipspmError("the spec's fingerprint does not match its fields: the cache was altered")
        return spec


@dataclass(frozen=True)
class VideoRecord:
    """One video: where it is, which class, how reading it went, and which frames were taken.

    ``path`` is relative to the videos root; ``frames`` is the video's length; ``indices`` and
    ``pts_seconds`` name the frames of view 0 (None: the file gives no timestamp).
    """

    id: str
    path: str
    class_name: str
    split: Split
    status: Status = "pending"
    category: str = ""
    error: str = ""
    frames: int = 0
    fps: float | None = None
    indices: tuple[int, ...] = ()
    pts_seconds: tuple[float | None, ...] = ()
    backend: str = ""

    @property
    def repeats(self) -> bool:
        """Whether the video has fewer frames than were asked for, so that some were taken twice."""
        return len(set(self.indices)) < len(self.indices)


@dataclass(frozen=True)
class Plan:
    """What a cache is to hold: the videos in row order, and the classes in the order of the text rows.

    ``expected``: how many videos each class has where the data set is complete (not named: those planned).
    ``absent``: classes of the data set of which no video is here: they have no text and take no part.
    """

    videos: tuple[VideoRecord, ...]
    class_names: tuple[str, ...]
    class_splits: dict[str, Split] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    absent: tuple["PlannedClass", ...] = ()

    def classes(self) -> list["PlannedClass"]:
        """Each class with its split and number of videos, in order; those that are absent come last."""
        planned = Counter(video.class_name for video in self.videos)
        present = [(n, self.class_splits[n], self.expected.get(n, planned[n])) for n in self.class_names]
        return [*present, *self.absent]
