"""The videos of one split in an order that does not depend on files on disk or on rows in a cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clipspm.cache.spec import EpisodeSplit
from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.episodes.random import digest

Split = EpisodeSplit
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Spec(Protocol):
    """What stage two reads of a cache's spec."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def has_text(self) -> bool: ...
    @property
    def logit_scale(self) -> float | None: ...
    @property
    def logit_bias(self) -> float | None: ...
    @property
    def frames(self) -> int: ...
    @property
    def views(self) -> int: ...
    @property
    def layers(self) -> tuple[str, ...]: ...
    @property
    def dims(self) -> Mapping[str, int]: ...


class Video(Protocol):
    """What stage two reads of a video's record."""

    @property
    def id(self) -> str: ...
    @property
    def class_name(self) -> str: ...
    @property
    def split(self) -> str: ...


class Coverage(Protocol):
    """How many videos a split has in the complete data set (``expected``), and readable here (``found``)."""

    @property
    def expected(self) -> int: ...
    @property
    def found(self) -> int: ...


class FeatureSource(Protocol):
    """The surface of a cache that stage two relies on (:class:`clipspm.cache.Cache` has it).

    ``good``: the N videos that have features, row by row; ``mapped(layer)`` [N, V, T, D], of which slices of
    rows are read; ``text()`` [C, D], a row per name of ``class_names``.
    """

    @property
    def path(self) -> Path: ...
    @property
    def spec(self) -> Spec: ...
    @property
    def good(self) -> Sequence[Video]: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def class_splits(self) -> Mapping[str, str]: ...
    def coverage(self, split: Split, /) -> Coverage: ...
    def mapped(self, layer: str = "final") -> Any: ...
    def text(self) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class Pool:
    """The good videos of one split, by class name, then by video id.

    ``names``: C class names, sorted; ``ids``: N video ids; ``labels`` [N]: each video's row in ``names``;
    ``starts`` and ``sizes`` [C]: where a class's videos lie; ``rows`` [N]: each video's row in the cache;
    ``text_rows`` [C]: each class's row in the cache's text.
    """

    dataset: str
    split: Split
    names: tuple[str, ...]
    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    text_rows: npt.NDArray[np.int64]

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first video of each class, [C]."""
        return np.cumsum(self.sizes) - self.sizes

    @classmethod
    def from_cache(cls, cache: FeatureSource, split: Split) -> "Pool":
        """List the videos of ``split``; refuse a video whose class belongs to another split (a leak)."""
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
        names = tuple(sorted(name for name, home in cache.class_splits.items() if home == split))
        rank = {name: c for c, name in enumerate(names)}
        videos = []
        for row, video in enumerate(cache.good):
            if video.split != split:
                continue
            if video.class_name not in rank:
                raise ClipspmError(
                    f"{cache.path}: video {video.id} is in split {split!r} but its class "
                    f"{video.class_name!r} belongs to {cache.class_splits.get(video.class_name)!r}"
                )
            videos.append((rank[video.class_name], video.id, row))
        videos.sort()
        labels = np.array([label for label, _, _ in videos], dtype=np.int64)
        text_row = {name: row for row, name in enumerate(cache.class_names)}
        return cls(
            dataset=cache.spec.dataset,
            split=split,
            names=names,
            ids=tuple(video_id for _, video_id, _ in videos),
            labels=labels,
            sizes=np.bincount(labels, minlength=len(names)).astype(np.int64),
            rows=np.array([row for _, _, row in videos], dtype=np.int64),
            text_rows=np.array([text_row[name] for name in names], dtype=np.int64),
        )

    def part(self, keep: npt.NDArray[np.bool_]) -> "Pool":
        """Return the videos of the mask ``keep`` [N], and the classes that have any of them."""
        left = np.flatnonzero(np.bincount(self.labels[keep], minlength=len(self.names)))
        labels = np.searchsorted(left, self.labels[keep])
        return replace(
            self,
            names=tuple(self.names[c] for c in left),
            ids=tuple(video for video, kept in zip(self.ids, keep, strict=True) if kept),
            labels=labels,
            sizes=np.bincount(labels, minlength=len(left)).astype(np.int64),
            rows=self.rows[keep],
            text_rows=self.text_rows[left],
        )

    def smallest(self) -> tuple[str, int]:
        """Return the class with the fewest videos, and how many it has."""
        c = int(self.sizes.argmin())
        return self.names[c], int(self.sizes[c])


def content_digest(cache: FeatureSource) -> str:
    """Return 16 hex digits that identify which good videos and classes are in which split.

    A cache that grew, or one seen under other splits, has the same fingerprint but another digest.
    """
    taking_part = sorted((v.split, v.class_name, v.id) for v in cache.good if v.split in SPLITS)
    classes = sorted((split, name) for name, split in cache.class_splits.items() if split in SPLITS)
    return digest("clipspm-content-v1", classes, taking_part).hex()[:16]
