"""What a cache holds, and the settings that its features depend on.

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

#: increased whenever older code could misread a new cache
FORMAT_VERSION = 3

#: the metadata files of a Zarr cache; an HDF5 cache holds them as byte arrays of the same names
SPEC, CLASSES, VIDEOS, LEDGER = "spec.json", "classes.json", "videos.jsonl", "ledger.jsonl"
BLOBS = (SPEC, CLASSES, VIDEOS, LEDGER)

Split = Literal["train", "val", "test", "none"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "none")
#: the splits that episodes are drawn from
EpisodeSplit = Literal["train", "val", "test"]
#: how a frame is scaled to the size before the crop: covering it, within it, or without its aspect ratio
ResizeMode = Literal["shortest", "longest", "squash"]
#: the layer that every cache holds: the encoder's embedding of each frame
FINAL = "final"
Format = Literal["zarr", "hdf5"]
ExportFormat = Literal["npz", "safetensors"]
Status = Literal["ok", "failed", "pending"]
#: class name, split, and number of videos in the complete data set
PlannedClass = tuple[str, Split, int]

#: fields for information only; the features do not depend on them
_INFORMATIVE = frozenset({"model", "pretrained", "created_with", "logit_scale", "logit_bias"})
#: fields that caches need not have, with what they then are; left out of records and fingerprints if that
_LATER: dict[str, Any] = {
    "names": "as given",
    "descriptions": {},
    "resize_mode": "shortest",
    "crop_width": None,
    "fill": (0, 0, 0),
    "logit_scale": None,
    "logit_bias": None,
}


def format_of(path: Path) -> Format:
    """The format for a file name: HDF5 for ``.h5`` and ``.hdf5``, else Zarr."""
    return "hdf5" if path.suffix.lower() in (".h5", ".hdf5") else "zarr"


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """All settings that the features of a cache depend on, and the names of data set and encoder.

    ``weights_sha256`` and ``architecture_sha256`` identify the encoder independently of its name.
    Frames are scaled by ``resize_mode`` to a size whose shorter side is ``resize`` pixels. The crop has
    ``crop`` rows and ``crop_width`` columns (None: a square); what a frame lacks of it is ``fill`` (RGB).
    ``resized_by``: Pillow in the decode workers, or torch on the encoder's device. ``names``: whether
    prompts hold class names as words (``brush hair``) or as they are. ``descriptions``: sentences by class,
    in place of prompts; the one prompt is then ``{}``, and a class has one text. ``prompts`` are empty, and
    there are no texts, if the encoder has none. ``logit_scale`` and ``logit_bias``: what the encoder was
    trained to make of the cosine of a frame and a text (times the one, plus the other).
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
    names: Literal["as given", "cleaned"] = "as given"
    descriptions: dict[str, list[str]] = field(default_factory=dict)
    resize_mode: ResizeMode = "shortest"
    crop_width: int | None = None
    fill: tuple[int, ...] = (0, 0, 0)
    logit_scale: float | None = None
    logit_bias: float | None = None

    @property
    def has_text(self) -> bool:
        """Whether there are class texts."""
        return bool(self.prompts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every field that changes the features, 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in _LATER or v != _LATER[k]}

    def _identity(self) -> dict[str, Any]:
        return {k: v for k, v in self._content().items() if k not in _INFORMATIVE}

    def differences(self, other: "CacheSpec") -> list[str]:
        """The fields that make two fingerprints differ, each as ``name: mine != theirs``."""
        mine, theirs = {**_LATER, **self._identity()}, {**_LATER, **other._identity()}
        return [_difference(k, mine[k], theirs[k]) for k in mine if mine[k] != theirs[k]]

    def to_json(self) -> str:
        """The spec with its fingerprint, as JSON."""
        return json.dumps({**self._content(), "fingerprint": self.fingerprint}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "CacheSpec":
        """Read :meth:`to_json`'s output.

        Raises :class:`ClipspmError` for another format version or a fingerprint that does not match.
        """
        raw = json.loads(text)
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            raise ClipspmError(f"cache format {version} found, this version reads format {FORMAT_VERSION}")
        held = {f.name: raw[f.name] for f in fields(cls) if f.name in raw or f.name not in _LATER}
        spec = cls(**typed(held, get_type_hints(cls)))
        if raw.get("fingerprint") != spec.fingerprint:
            raise ClipspmError("the spec's fingerprint does not match its fields: the cache was altered")
        return spec


def _difference(name: str, mine: Any, theirs: Any) -> str:
    if name != "descriptions":
        return f"{name}: {mine} != {theirs}"
    first = next(k for k in [*mine, *theirs] if mine.get(k) != theirs.get(k))
    return f"descriptions (first of class {first!r}): {mine.get(first)} != {theirs.get(first)}"


@dataclass(frozen=True)
class VideoRecord:
    """One video: its path and class, the outcome of reading it, and the frames that were used.

    ``path`` is relative to the videos root; ``frames`` is the video's length; ``indices`` and
    ``pts_seconds`` are those of the frames used (None: the file gives no timestamp).
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
        """Whether some frames are repeated because the video has fewer than were asked for."""
        return len(set(self.indices)) < len(self.indices)


@dataclass(frozen=True)
class Plan:
    """What a cache will hold: the videos in row order, and the classes in the order of the text rows.

    ``expected``: videos per class in the complete data set (default: the planned ones). ``absent``: classes
    of the data set without any video here; they get no text.
    """

    videos: tuple[VideoRecord, ...]
    class_names: tuple[str, ...]
    class_splits: dict[str, Split] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    absent: tuple["PlannedClass", ...] = ()

    def classes(self) -> list["PlannedClass"]:
        """Each class with its split and expected number of videos, in order; absent classes come last."""
        planned = Counter(video.class_name for video in self.videos)
        present = [(n, self.class_splits[n], self.expected.get(n, planned[n])) for n in self.class_names]
        return [*present, *self.absent]
