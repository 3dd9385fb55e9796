"""Looks: how a clip's shape and background appear, whatever the shape does."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from .shapes import COLOURS, KINDS, TONES


@dataclass(frozen=True)
class Look:
    """A shape before a background; place, size, bystanders and light are still drawn for every clip."""

    kind: str
    """The shape, one of :data:`KINDS`."""
    colour: str
    """Its hue, one of :data:`COLOURS`."""
    tone: str
    """The background, ``dark`` or ``bright``."""
    bar: str
    """A bar behind the shape, ``upright`` or ``level``; empty: none."""

    @property
    def hue(self) -> float:
        """The hue in turns."""
        return COLOURS.index(self.colour) / len(COLOURS)

    @property
    def text(self) -> str:
        """What there is to see, in words that the demo's encoder has learnt."""
        bar = f"on {self.bar} bar " if self.bar else ""
        return f"{self.colour} {self.kind} {bar}{self.tone} backdrop"


def _draw() -> dict[str, Look]:
    names = ["".join(sounds) for sounds in itertools.product("kmnrstv", "aeio")]
    every = list(itertools.product(KINDS, COLOURS, TONES, ("", "upright", "level")))
    chosen = random.Random(0).sample(every, len(names))
    return {name: Look(*parts) for name, parts in zip(names, chosen, strict=True)}


LOOKS: dict[str, Look] = _draw()
"""28 looks by name, a syllable that says nothing."""
