"""What is known of a reproduction before there are features: which runs it takes, and of which videos.

Nothing here loads PyTorch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipspm.cache.reader import Coverage
from clipspm.cache.spec import FINAL
from clipspm.errors import UsageError
from clipspm.progress import Say
from clipspm.train_heads.config import TrainConfig, resolve_config
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import check_request
from clipspm.train_heads.episodes.pool import FeatureSource, Video
from clipspm.train_heads.request import fit_to_cache


@dataclass(frozen=True, kw_only=True)
class PlannedSpec:
    """What is known of a cache's settings. ``dims``: width by layer, the last one named ``final``."""

    dataset: str
    model: str
    has_text: bool
    frames: int
    dims: Mapping[str, int] = field(default_factory=lambda: {FINAL: 1})
    fingerprint: str = "planned"
    views: int = 1
    logit_scale: float | None = None
    logit_bias: float | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""
        return tuple(self.dims)


@dataclass(frozen=True)
class Planned:
    """Planned videos with the surface of a cache: their features [N, 1, T, D] and texts are random."""

    spec: PlannedSpec
    good: Sequence[Video]
    class_names: Sequence[str]
    class_splits: Mapping[str, str]
    path: Path = Path("planned")

    def coverage(self, split: str) -> Coverage:
        """Count the planned videos of ``split``."""
        found = sum(video.split == split for video in self.good)
        return Coverage(found, found)

    def mapped(self, layer: str = FINAL) -> npt.NDArray[np.float16]:
        """Return random features, [N, 1, T, D]."""
        shape = (len(self.good), 1, self.spec.frames, self.spec.dims[layer])
        return np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)

    def text(self) -> npt.NDArray[np.float32]:
        """Return random class texts, [C, D]."""
        shape = (len(self.class_names), self.spec.dims[FINAL])
        return np.random.default_rng(1).standard_normal(shape, np.float32)

    def first(self, count: int) -> "Planned":
        """Return the first ``count`` videos of each class."""
        seen: Counter[str] = Counter()
        kept = []
        for video in self.good:
            seen[video.class_name] += 1
            if seen[video.class_name] <= count:
                kept.append(video)
        return replace(self, good=tuple(kept))


def rows_of(
    dataset: str,
    *,
    recipes: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
) -> tuple[TrainConfig, ...]:
    """Return the configuration of each run: recipe by recipe, then by shots, then by seed.

    Raises :class:`UsageError` for unknown recipes, settings out of bounds, and whatever is named twice.
    """
    for option, values in (("--recipes", recipes), ("--shots", shots), ("--seeds", seeds)):
        if not values or len(set(values)) != len(values):
            said = ",".join(map(str, values))
            raise UsageError(f"{option} {said!r}: give at least one, and each only once")
    return tuple(
        resolve_config(recipe=recipe, dataset=dataset, overrides={**overrides, "shots": count, "seed": seed})
        for recipe in recipes
        for count in shots
        for seed in seeds
    )


def fitted(source: Data | FeatureSource, configs: Sequence[TrainConfig], say: Say) -> list[TrainConfig]:
    """Fit every configuration to ``source``, which may be :class:`Planned`; say what they share once.

    Raises :class:`UsageError` if the classes of a split cannot give what is asked.
    """
    data, said = source if isinstance(source, Data) else Data(source), set[str]()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    for config in configs:
        check_request(data.pools["test"], way=config.way, shot=config.shots, queries=1)
    return [fit_to_cache(config, data.pools, data.spec, say_once) for config in configs]
