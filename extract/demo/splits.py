"""Three class splits of the demo: 12 / 6 / 10 classes for training, validation and test.

They were drawn with the seeds below before any accuracy was measured. Both classes of a pair are always in
the same split: a head that tells a test pair apart has never seen either direction of it.
"""

from __future__ import annotations

import random

from .actions import PAIRS

SPLIT_SEEDS = (0, 1, 2)
_SIZES = {"train": 6, "val": 3, "test": 5}  # in pairs


def _draw(seed: int) -> dict[str, list[str]]:
    pairs = list(PAIRS)
    random.Random(seed).shuffle(pairs)
    split: dict[str, list[str]] = {}
    for name, count in _SIZES.items():
        split[name] = [folder for pair in pairs[:count] for folder in pair]
        pairs = pairs[count:]
    return split


DEMO_SPLITS: tuple[dict[str, list[str]], ...] = tuple(_draw(seed) for seed in SPLIT_SEEDS)
"""The three splits: train, val and test -> class folders."""


def demo_splits(k: int) -> dict[str, list[str]]:
    """Split ``k`` (0, 1 or 2) as ``{"train": [...], "val": [...], "test": [...]}`` of class folders."""
    if not 0 <= k < len(DEMO_SPLITS):
        raise ValueError(f"the demo has splits 0 to {len(DEMO_SPLITS) - 1}, not {k}")
    return {name: list(folders) for name, folders in DEMO_SPLITS[k].items()}
