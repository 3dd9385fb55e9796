"""A cache in memory with the surface that stage two relies on, and small heads, for tests."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipspm.cache import Cache, CacheWriter, Plan, VideoRecord, open_cache
from clipspm.cache.reader import Coverage
from clipspm.train_heads.config import TrainConfig, resolve_config
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from tests.support.caches import SPEC


@dataclass(frozen=True)
class FakeSpec:
    dataset: str = "fake"
    model: str = "fake-encoder"
    has_text: bool = True
    logit_scale: float | None = None
    logit_bias: float | None = None
    fingerprint: str = "f" * 64
    frames: int = 4
    views: int = 1
    layers: tuple[str, ...] = ("final",)
    dims: Mapping[str, int] = field(default_factory=lambda: {"final": 16})


@dataclass(frozen=True)
class FakeVideo:
    id: str
    class_name: str
    split: str


@dataclass(frozen=True)
class FakeCache:
    path: Path
    spec: FakeSpec
    good: tuple[FakeVideo, ...]
    class_names: tuple[str, ...]
    class_splits: dict[str, Any]
    arrays: dict[str, Any] = field(repr=False)
    texts: np.ndarray = field(repr=False)

    def mapped(self, layer: str = "final") -> Any:
        return self.arrays[layer]

    def coverage(self, split: str) -> Coverage:
        found = sum(video.split == split for video in self.good)
        return Coverage(found, found)

    def text(self) -> np.ndarray:
        return self.texts

    def reordered(self, seed: int) -> "FakeCache":
        """The same videos and classes in another order of rows."""
        rng = np.random.default_rng(seed)
        rows, classes = rng.permutation(len(self.good)), rng.permutation(len(self.class_names))
        names = tuple(self.class_names[c] for c in classes)
        return replace(
            self,
            good=tuple(self.good[r] for r in rows),
            class_names=names,
            class_splits={name: self.class_splits[name] for name in names},
            arrays={layer: array[rows] for layer, array in self.arrays.items()},
            texts=self.texts[classes],
        )


def fake_cache(
    classes: Mapping[str, int] | None = None,
    *,
    per_class: int | Sequence[int] = 8,
    noise: float = 0.6,
    views: int = 1,
    frames: int = 4,
    dim: int = 16,
    extra_layers: Mapping[str, int] | None = None,
    dataset: str = "fake",
) -> FakeCache:
    """Classes that differ in the order of two patterns plus a static one; ``classes``: how many per split."""
    counts = classes or {"train": 6, "val": 5, "test": 5}
    names, splits = [], {}
    for split, count in counts.items():
        for c in range(count):
            names.append(f"{split} class {c:02d}")
            splits[names[-1]] = split
    sizes = [per_class] * len(names) if isinstance(per_class, int) else list(per_class)
    dims = {"final": dim, **(extra_layers or {})}
    videos, arrays = [], {layer: [] for layer in dims}
    for name, size in zip(names, sizes, strict=True):
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        rng = np.random.default_rng(seed)
        shapes = {layer: rng.normal(size=(1, frames, width)) for layer, width in dims.items()}
        for v in range(size):
            videos.append(FakeVideo(f"{name}/v{v:03d}", name, splits[name]))
            for layer, width in dims.items():
                sample = shapes[layer] + noise * rng.normal(size=(views, frames, width)) + 0.5
                arrays[layer].append(sample.astype(np.float16))
    texts = np.random.default_rng(7).normal(size=(len(names), dim)).astype(np.float32)
    spec = FakeSpec(dataset=dataset, frames=frames, views=views, layers=tuple(dims), dims=dims)
    stacked = {layer: np.stack(parts) for layer, parts in arrays.items()}
    return FakeCache(Path("/nowhere/fake"), spec, tuple(videos), tuple(names), splits, stacked, texts)


class LinearHead(Head):
    """A trainable head small enough for tests, with dropout and a tunable buffer."""

    tunable = {"sharpness": (0.5, 2.0)}  # noqa: RUF012

    def __init__(
        self,
        *,
        dim: int,
        frames: int,
        layer_dims: Mapping[str, int] | None = None,
        scale: float = 1.0,
        shallow: str = "",
    ) -> None:
        super().__init__(dim=dim, layer_dims=layer_dims)
        self.lift = nn.Linear(dim, dim)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("sharpness", torch.tensor(float(scale)))
        if shallow:
            self.layers = ("final", shallow)

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        videos = episode.support["final"], episode.query["final"]
        support, query = (self.drop(self.lift(x.mean(2))) for x in videos)
        member = nn.functional.one_hot(episode.support_labels, episode.text.shape[1]).to(support.dtype)
        prototypes = member.mT @ support / member.sum(1)[..., None]
        return {"near": -torch.cdist(query, prototypes)}

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["near"] * self.sharpness


def tiny_config(**overrides: Any) -> TrainConfig:
    """clip-spm made small, trained for a few steps on a CPU."""
    small = {"heads": 1, "head_width": 8, "ffn_width": 16, "d2_weight": 1.0, "d3_weight": 1.0}
    values = {
        "device": "cpu",
        "episodes": 48,
        "batch": 8,
        "val_every": 16,
        "val_episodes": 10,
        "way": 3,
        "queries": 2,
        **overrides,
    }
    if values.get("head", "clip-spm") == "clip-spm":
        values["head_config"] = {**small, **values.get("head_config", {})}
    return resolve_config(overrides=values)


def silent(line: str) -> None:
    """A log that keeps nothing."""


class ByHand(Head):
    """Counts calls; scores by mean frames, so that a loop can check it."""

    def __init__(self) -> None:
        super().__init__(dim=16)
        self.sizes: list[int] = []

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        support = episode.support["final"]
        self.sizes.append(len(support))
        each = support.mean(2).unflatten(1, (episode.text.shape[1], -1)).mean(2)
        return {"near": -torch.cdist(episode.query["final"].mean(2), each)}


def real_cache(path: Path, fake: FakeCache, split: str | None = None) -> Cache:
    """The fake's content as a cache on disk; ``split`` puts every class there."""
    dims = dict(fake.spec.dims)
    spec = replace(SPEC, dataset="fake", layers=tuple(dims), dims=dims, frames=fake.spec.frames, views=1)
    spec = replace(spec, prompts=spec.prompts if fake.spec.has_text else ())
    splits = {name: split or home for name, home in fake.class_splits.items()}
    videos = tuple(VideoRecord(v.id, v.id, v.class_name, splits[v.class_name]) for v in fake.good)
    texts = np.repeat(fake.texts[:, None], len(spec.prompts), axis=1)
    writer = CacheWriter(path, spec, Plan(videos, fake.class_names, splits), texts)
    for shard, rows in writer.pending_shards():
        outcomes = {r: replace(writer.records[r], status="ok", frames=fake.spec.frames) for r in rows}
        writer.commit(shard, outcomes, {k: fake.arrays[k][list(rows)] for k in dims})
    writer.finish()
    return open_cache(path)
