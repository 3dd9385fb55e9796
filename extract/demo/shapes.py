"""Antialiased shapes and backgrounds in numpy, vectorised over frames.

Positions and lengths are fractions of the frame's side, with x to the right and y down; angles are
radians, clockwise as seen. Shape letters: N frames (or stills), S pixels per side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIDE = 64
"""Pixels per side of a frame."""

SYMMETRY = {"square": 90, "triangle": 120, "cross": 90, "star": 72, "slab": 180, "dome": 360, "chevron": 360}
"""Kind of shape -> the smallest rotation, in degrees, that maps it onto itself."""

KINDS = tuple(SYMMETRY)

COLOURS = (
    "red",
    "orange",
    "yellow",
    "lime",
    "green",
    "mint",
    "cyan",
    "azure",
    "blue",
    "violet",
    "magenta",
    "pink",
)
"""Names of the hues, a twelfth of a turn apart."""

_ROOT3 = float(np.sqrt(3.0))
_STAR_ARM = np.pi / 5  # half the angle between two points of the star
_STAR_OUTER = np.array([1.08, 0.0])
_STAR_INNER = 0.48 * np.array([np.cos(_STAR_ARM), np.sin(_STAR_ARM)])


def _square(u: Floats, v: Floats) -> Floats:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.8)


def _triangle(u: Floats, v: Floats) -> Floats:
    slanted = np.abs(u) * np.float32(_ROOT3 / 2) - v * np.float32(0.5)
    return np.maximum(slanted, v) - np.float32(0.55)


def _cross(u: Floats, v: Floats) -> Floats:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(a, b) - np.float32(0.32), np.maximum(a, b) - np.float32(0.98))


def _star(u: Floats, v: Floats) -> Floats:
    """A five-pointed star: fold the plane onto half an arm, then measure the distance to its edge."""
    turn = np.arctan2(v, u) + np.float32(np.pi / 2)
    folded = np.abs((turn + np.float32(_STAR_ARM)) % np.float32(2 * _STAR_ARM) - np.float32(_STAR_ARM))
    radius = np.hypot(u, v)
    edge = _STAR_INNER - _STAR_OUTER
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    along = (radius * np.cos(folded) - np.float32(_STAR_OUTER[0])) * np.float32(normal[0])
    return along + radius * np.sin(folded) * np.float32(normal[1])  # type: ignore[return-value,no-any-return]


def _slab(u: Floats, v: Floats) -> Floats:
    return np.maximum(np.abs(u) - np.float32(1.05), np.abs(v) - np.float32(0.45))


def _dome(u: Floats, v: Floats) -> Floats:
    shifted = v - np.float32(0.4)
    return np.maximum(np.hypot(u, shifted) - np.float32(1.05), shifted)


def _chevron(u: Floats, v: Floats) -> Floats:
    spread = np.abs(u)
    bent = np.abs(v + np.float32(0.35) - np.float32(0.8) * spread) * np.float32(0.78)
    return np.maximum(bent - np.float32(0.34), spread - np.float32(0.95))


_SIGNED: dict[str, Callable[[Floats, Floats], Floats]] = {
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "slab": _slab,
    "dome": _dome,
    "chevron": _chevron,
}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A shape to draw; each field but ``kind`` is a number, or one per frame, ``[N]`` (colour ``[N, 3]``)."""

    kind: str
    """One of :data:`KINDS`."""
    x: Any
    y: Any
    """Its centre."""
    size: Any
    """Half its extent before stretching."""
    angle: Any = 0.0
    """Its rotation, radians clockwise."""
    aspect: Any = 0.0
    """Log of the stretching of height over width; the area stays the same."""
    notch: Any = 0.0
    """Half the angle, in radians, of the wedge cut out of it; 0 is whole."""
    colour: Any = (1.0, 1.0, 1.0)
    """Red, green, blue in 0..1."""
    alpha: Any = 1.0
    """Opacity in 0..1."""


def _per_frame(value: Any, count: int) -> Floats:
    """``value`` as ``[N, 1, 1]``."""
    array = np.asarray(value, dtype=np.float32).reshape(-1, 1, 1)
    return array if len(array) == count else np.broadcast_to(array, (count, 1, 1))


def pixel_grid(side: int = SIDE) -> tuple[Floats, Floats]:
    """The x ``[1, 1, S]`` and y ``[1, S, 1]`` of pixel centres."""
    line = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side)
    return line.reshape(1, 1, side), line.reshape(1, side, 1)


def coverage(thing: Thing, count: int, side: int = SIDE) -> Floats:
    """How much of each pixel the shape covers, in 0..1, before opacity.  [N, S, S]"""
    grid_x, grid_y = pixel_grid(side)
    size, half = _per_frame(thing.size, count), _per_frame(thing.aspect, count) * np.float32(0.5)
    width, height = size * np.exp(-half), size * np.exp(half)
    dx = (grid_x - _per_frame(thing.x, count)) / width
    dy = (grid_y - _per_frame(thing.y, count)) / height
    angle = _per_frame(thing.angle, count)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    distance = _SIGNED[thing.kind](u, v)
    notch = _per_frame(thing.notch, count)
    if np.any(notch > 0):  # a wedge that points along +u: |v| below u * tan(notch)
        wedge = np.abs(v) * np.cos(notch) - u * np.sin(notch)
        distance = np.where(notch > 0, np.maximum(distance, -wedge), distance)
    return np.clip(np.float32(0.5) - distance * np.minimum(width, height) * np.float32(side), 0, 1)


def blend(canvas: Floats, cover: Floats, colour: Any, alpha: Any) -> None:
    """Blend ``colour`` into ``canvas`` ``[N, S, S, 3]`` in place, weighted by ``cover`` ``[N, S, S]``."""
    count = len(canvas)
    weight = (cover * _per_frame(alpha, count))[..., None]
    paint = np.asarray(colour, dtype=np.float32).reshape(-1, 1, 1, 3)
    canvas += weight * (paint - canvas)


def paint(canvas: Floats, thing: Thing) -> None:
    """Draw ``thing`` over ``canvas`` ``[N, S, S, 3]`` in place."""
    blend(canvas, coverage(thing, len(canvas), canvas.shape[1]), thing.colour, thing.alpha)


def bar_cover(count: int, side: int, *, centre: Any, half_width: Any, upright: Any) -> Floats:
    """How much of each pixel a bar from edge to edge covers, in 0..1.  [N, S, S]

    ``centre`` is the x of an ``upright`` bar and the y of a level one.
    """
    grid_x, grid_y = pixel_grid(side)
    across = np.where(_per_frame(upright, count) > 0.5, grid_x, grid_y)
    distance = np.abs(across - _per_frame(centre, count)) - _per_frame(half_width, count)
    return np.clip(np.float32(0.5) - distance * np.float32(side), 0, 1)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An opaque bar from edge to edge."""

    centre: Any
    """Its x when ``upright``, else its y; a number or one per frame, ``[N]``."""
    half_width: float
    upright: bool
    colour: Any
    """Red, green, blue in 0..1."""


def paint_bar(canvas: Floats, bar: Bar) -> None:
    """Draw ``bar`` over ``canvas`` ``[N, S, S, 3]`` in place."""
    cover = bar_cover(
        len(canvas), canvas.shape[1], centre=bar.centre, half_width=bar.half_width, upright=bar.upright
    )
    blend(canvas, cover, bar.colour, 1.0)


def hsv(hue: Any, saturation: Any, value: Any) -> Floats:
    """RGB from hue (in turns), saturation and value, all broadcastable to ``[N]``.  [N, 3]"""
    h, s, v = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(a, dtype=np.float32)) for a in (hue, saturation, value))
    )
    offsets = np.array([5.0, 3.0, 1.0], dtype=np.float32)
    k = (offsets + h[:, None] * 6) % 6
    return (v[:, None] * (1 - s[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(np.float32)


TONES = {"dark": (0.05, 0.3), "bright": (0.62, 0.92)}
"""Least and most brightness of the two kinds of background; mid tones would hide saturated shapes."""


@dataclass(frozen=True, kw_only=True)
class Backdrop:
    """A background: a tinted tone with a gradient, a ripple and grain."""

    tone: float
    """Its brightness in 0..1."""
    tint: tuple[float, float, float]
    gradient: tuple[float, float]
    """Increase in brightness from the left to the right edge, and from the top to the bottom."""
    ripple: tuple[float, float, float, float]
    """Amplitude, waves per side along x and along y, phase in radians."""
    grain: float
    """Standard deviation of noise that is the same in every frame."""
    grain_seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Backdrop:
        """Draw a random background, dark or bright."""
        tone = float(rng.uniform(*TONES["dark" if rng.random() < 0.5 else "bright"]))
        tint = tuple(float(t) for t in rng.uniform(-0.06, 0.06, 3))
        return cls(
            tone=tone,
            tint=(tint[0], tint[1], tint[2]),
            gradient=(float(rng.uniform(-0.16, 0.16)), float(rng.uniform(-0.16, 0.16))),
            ripple=(
                float(rng.uniform(0, 0.05)),
                float(rng.uniform(-5, 5)),
                float(rng.uniform(-5, 5)),
                float(rng.uniform(0, 2 * np.pi)),
            ),
            grain=float(rng.uniform(0, 0.02)),
            grain_seed=int(rng.integers(2**31)),
        )

    def image(self, side: int = SIDE) -> Floats:
        """The background alone, values in 0..1.  [1, S, S, 3]"""
        x, y = pixel_grid(side)
        amplitude, waves_x, waves_y, phase = self.ripple
        light = self.tone + self.gradient[0] * (x - 0.5) + self.gradient[1] * (y - 0.5)
        light = light + amplitude * np.sin(2 * np.pi * (waves_x * x + waves_y * y) + phase)
        noise = np.random.default_rng(self.grain_seed).standard_normal((1, side, side, 1), dtype=np.float32)
        image = light[..., None] + np.asarray(self.tint, dtype=np.float32) + self.grain * noise
        return np.clip(image, 0, 1).astype(np.float32)


def to_uint8(canvas: Floats, light: Any = 1.0) -> NDArray[np.uint8]:
    """Frames from a canvas ``[N, S, S, 3]`` in 0..1 under ``light`` (a factor, or one per frame ``[N]``)."""
    factor = np.asarray(light, dtype=np.float32).reshape(-1, 1, 1, 1)
    return (np.clip(canvas * factor, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def stack_backdrops(backdrops: Sequence[Backdrop], side: int = SIDE) -> Floats:
    """The images of several backgrounds.  [N, S, S, 3]"""
    return np.concatenate([backdrop.image(side) for backdrop in backdrops])
