"""The worlds of the demo: what tells the classes of a data set apart, and what their texts say.

All are drawn by one generator. A world says what is drawn for a class, how classes are split, and how they
are called; worlds that differ in class names only share their videos.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipspm.errors import UsageError
from clipspm.settings import near

from .actions import CLASSES, PAIRS, draw_action
from .looks import LOOKS

Draw = Callable[[str, np.random.Generator], NDArray[np.uint8]]

ClassSplit = dict[str, list[str]]
"""``train``, ``val`` and ``test`` -> class folders."""

SPLIT_SEEDS = (0, 1, 2)
"""Seeds of the three class splits of ``motion`` and ``look``, drawn before any accuracy was measured."""

MOTION = "motion"


@dataclass(frozen=True, kw_only=True)
class World:
    """A data set that is drawn."""

    name: str
    about: str
    """What tells its classes apart."""
    names: Mapping[str, str]
    """Class folder -> class name, which is also the class's text."""
    splits: tuple[ClassSplit, ...]
    """Three class splits; the first is that of the data set."""
    draw: Draw
    """Draw a clip of a class folder.  [FRAMES, SIDE, SIDE, 3]"""
    filmed_as: str
    """The world whose videos these are."""
    telling: bool = False
    """Whether the class names say anything that the demo's encoder understands."""

    @property
    def dataset(self) -> str:
        """Its name as a data set: ``demo``, ``demo-look``, ..."""
        return "demo" if self.name == MOTION else f"demo-{self.name}"

    def folder(self, where: Path) -> Path:
        """Where its cache and runs are, below the demo's folder ``where``."""
        return where if self.name == MOTION else where / self.name

    def videos(self, where: Path) -> Path:
        """Where its videos are, below the demo's folder ``where``."""
        return WORLDS[self.filmed_as].folder(where) / "videos"


def _shuffled(groups: Sequence[Sequence[str]], sizes: tuple[int, int, int]) -> tuple[ClassSplit, ...]:
    """Shuffle ``groups`` of folders, then take ``sizes`` of them for training, validation and test."""
    splits = []
    for seed in SPLIT_SEEDS:
        left = list(groups)
        random.Random(seed).shuffle(left)
        split: ClassSplit = {}
        for name, count in zip(("train", "val", "test"), sizes, strict=True):
            split[name] = [folder for group in left[:count] for folder in group]
            left = left[count:]
        splits.append(split)
    return tuple(splits)


def _rotated(first: Sequence[str], second: Sequence[str], third: Sequence[str]) -> tuple[ClassSplit, ...]:
    """Let each of three groups of folders be the training, the validation and the test classes once."""
    parts = [list(first), list(second), list(third)]
    return tuple(
        {name: list(parts[(k + turn) % 3]) for name, turn in (("train", 0), ("test", 1), ("val", 2))}
        for k in range(3)
    )


# ------------------------------------------------------------------------------------------ look and both

_PAIRS = (
    (("hiding", "emerging"), ("swelling", "dwindling")),
    (("meeting", "parting"), ("appearing", "vanishing")),
    (("northeast_drift", "southwest_drift"), ("dawn", "nightfall")),
)

_BLOCKS: tuple[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], ...] = tuple(
    (tuple(LOOKS)[3 * place : 3 * place + 3], pairs) for place, pairs in enumerate(_PAIRS)
)
"""Three looks, each with the actions of two pairs: a class shares its look with three others of its block,
and its action with two."""

_BOTH: dict[str, tuple[str, str]] = {
    f"{look}_{action}": (look, action)
    for looks, pairs in _BLOCKS
    for look in looks
    for pair in pairs
    for action in pair
}
"""Class folder of ``both`` -> its look and its action."""

_TOLD = {folder: f"{LOOKS[look].text} {CLASSES[action]}" for folder, (look, action) in _BOTH.items()}


def _told_wrong() -> dict[str, str]:
    """Each class called what another one of its block is: the next look, the reverse action."""
    wrong = {}
    for looks, pairs in _BLOCKS:
        for place, look in enumerate(looks):
            for action, reverse in (turn for pair in pairs for turn in (pair, pair[::-1])):
                wrong[f"{look}_{action}"] = _TOLD[f"{looks[(place + 1) % len(looks)]}_{reverse}"]
    return wrong


def _draw_look(folder: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    action = str(rng.choice(list(CLASSES)))
    return draw_action(action, rng, LOOKS[folder])


def _draw_both(folder: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    look, action = _BOTH[folder]
    return draw_action(action, rng, LOOKS[look])


def _both(name: str, about: str, names: Mapping[str, str], *, telling: bool = True) -> World:
    return World(
        name=name,
        about=about,
        names=names,
        splits=_rotated(*([folder for folder in _BOTH if _BOTH[folder][0] in looks] for looks, _ in _BLOCKS)),
        draw=_draw_both,
        filmed_as="both",
        telling=telling,
    )


WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World(
            name=MOTION,
            about="only motion tells classes apart",
            names=CLASSES,
            splits=_shuffled(PAIRS, (6, 3, 5)),
            draw=draw_action,
            filmed_as=MOTION,
        ),
        World(
            name="look",
            about="only appearance tells classes apart",
            names={name: name for name in LOOKS},
            splits=_shuffled([(name,) for name in LOOKS], (12, 6, 10)),
            draw=_draw_look,
            filmed_as="look",
        ),
        _both(
            "both",
            "some classes differ in appearance, some in motion",
            {folder: folder.replace("_", " ") for folder in _BOTH},
            telling=False,
        ),
        _both("told", "both, and class names that say what is seen", _TOLD),
        _both("lied", "both, and class names that belong to other classes", _told_wrong()),
    )
}
"""The worlds by name."""


def world_of(dataset: str) -> World:
    """Return the world that is the data set ``dataset``; ``ValueError`` if there is none."""
    for world in WORLDS.values():
        if world.dataset == dataset:
            return world
    raise ValueError(f"no world of the demo is the data set {dataset!r}")


def find_worlds(name: str) -> tuple[World, ...]:
    """Return the world called ``name``, or each for ``all``; :class:`UsageError` names close ones."""
    if name == "all":
        return tuple(WORLDS.values())
    if name not in WORLDS:
        raise UsageError(f"unknown world {name!r}{near(name, (*WORLDS, 'all'))}")
    return (WORLDS[name],)


DEMO_SPLITS = WORLDS[MOTION].splits
"""The three splits of ``motion``: train, val and test -> class folders.

Both classes of a pair are always in the same split: a head that tells a test pair apart has never seen
either direction of it.
"""


def demo_splits(k: int) -> dict[str, list[str]]:
    """Split ``k`` (0, 1 or 2) of ``motion``, ``{"train": [...], "val": [...], "test": [...]}``."""
    if not 0 <= k < len(DEMO_SPLITS):
        raise ValueError(f"the demo has splits 0 to {len(DEMO_SPLITS) - 1}, not {k}")
    return {name: list(folders) for name, folders in DEMO_SPLITS[k].items()}
