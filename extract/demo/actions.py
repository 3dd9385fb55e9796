"""The actions of the demo: pairs that differ only in the direction of time.

A clip of a pair's second action is drawn like one of the first, with its frames reversed. The frames of both
therefore have the same distribution, easing and pauses included, and only their order tells the two apart.
Unless a look (:mod:`.looks`) is given, everything else (shapes, colours, background, bystanders, size, speed,
start, easing, pauses) is drawn in the same way for every pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .looks import Look
from .shapes import KINDS, SIDE, TONES, Backdrop, Bar, Floats, Thing, hsv, paint, paint_bar, to_uint8

FRAMES = 24
"""Frames per clip: 8 x 3, so that the middles of 8 equal segments are the same after reversing the clip."""

FPS = 12

SHAKE, WOBBLE, BREATH, FLICKER = 0.15, 0.35, 0.45, 0.75
"""Largest amplitudes: camera shake (frame sides), rotation (radians), size (log) and light (log).

Set on validation classes: with smaller ones, subtracting a clip's mean frame already solves most of the task.
"""


HUE_SPREAD = 0.03
"""Standard deviation of the hue, in turns, between clips of one look."""


@dataclass(frozen=True)
class Scene:
    """Everything in a clip that does not depend on its action, and the action's clock."""

    rng: np.random.Generator
    clock: Floats
    """Progress of the action from 0 to 1, with its easing and pauses.  [FRAMES]"""
    thing: Thing
    """The shape that acts, before the action changes it."""
    other: Thing | None
    """A bystander."""
    bar: Bar | None
    """A bar behind the shapes."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What the camera sees: shapes from back to front, a bar in front of or behind them, and the light."""

    things: tuple[Thing, ...]
    bar: Bar | None = None
    bar_in_front: bool = False
    light: Floats | float = 1.0


def _clock(rng: np.random.Generator) -> Floats:
    """Progress 0..1 per frame: random start, end and easing, sometimes a pause in the middle.  [FRAMES]"""
    time = np.linspace(0, 1, FRAMES)
    begin, end = rng.uniform(0, 0.15), 1 - rng.uniform(0, 0.15)
    phase = np.clip((time - begin) / (end - begin), 0, 1)
    if rng.random() < 0.3:
        hold, width = rng.uniform(0.3, 0.7), rng.uniform(0.08, 0.2)
        moving = phase * (1 + width)
        phase = np.where(moving < hold, moving, np.where(moving < hold + width, hold, moving - width))
    power = float(np.exp(rng.uniform(-0.45, 0.45)))
    smooth = rng.uniform(0, 1)
    eased = (1 - smooth) * phase + smooth * phase * phase * (3 - 2 * phase)
    return np.clip(eased, 0, 1).astype(np.float32) ** np.float32(power)


def _colour(rng: np.random.Generator) -> Floats:
    return hsv(rng.random(), rng.uniform(0.65, 1.0), rng.uniform(0.7, 1.0))


def _thing(rng: np.random.Generator) -> Thing:
    return Thing(
        kind=str(rng.choice(KINDS)),
        x=rng.uniform(0.34, 0.66),
        y=rng.uniform(0.34, 0.66),
        size=rng.uniform(0.10, 0.17),
        angle=rng.uniform(0, 2 * np.pi),
        colour=_colour(rng),
    )


def _bystander(rng: np.random.Generator) -> Thing:
    turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.4)
    return replace(
        _thing(rng), x=0.5 + far * np.cos(turn), y=0.5 + far * np.sin(turn), size=rng.uniform(0.05, 0.1)
    )


def _bar(rng: np.random.Generator) -> Bar:
    return Bar(
        centre=rng.uniform(0.3, 0.7),
        half_width=rng.uniform(0.1, 0.18),
        upright=bool(rng.random() < 0.5),
        colour=hsv(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.3, 0.7)),
    )


def _sway(rng: np.random.Generator, least: float, most: float) -> Floats:
    """A sine of random frequency and phase, with an amplitude between ``least`` and ``most``.  [FRAMES]"""
    time = np.linspace(-0.5, 0.5, FRAMES)
    swing = np.sin(2 * np.pi * (rng.uniform(1.2, 3.2) * time + rng.random()))
    return (rng.uniform(least, most) * swing).astype(np.float32)


def _unsteady(shot: Shot, rng: np.random.Generator) -> Shot:
    """Add what every clip has, whatever its action: camera shake, wobbling shapes, flickering light.

    All of these oscillate; only the action remains when they are smoothed away.
    """
    dx, dy = _sway(rng, 0.02, SHAKE), _sway(rng, 0.02, SHAKE)
    things = tuple(
        replace(
            thing,
            x=thing.x + dx,
            y=thing.y + dy,
            angle=thing.angle + _sway(rng, 0.1, WOBBLE),
            size=thing.size * np.exp(_sway(rng, 0.05, BREATH)),
        )
        for thing in shot.things
    )
    bar = shot.bar
    if bar is not None:
        bar = replace(bar, centre=bar.centre + (dx if bar.upright else dy))
    flicker = np.exp(_sway(rng, 0.05, FLICKER) - 0.2)
    return replace(shot, things=things, bar=bar, light=shot.light * flicker)  # type: ignore[arg-type]


def _between(clock: Floats, start: float, stop: float) -> Floats:
    return np.float32(start) + np.float32(stop - start) * clock


def _travel(scene: Scene, direction: float) -> Shot:
    """Move across the frame in about the ``direction`` (radians, 0 to the right, clockwise)."""
    rng = scene.rng
    heading = direction + rng.uniform(-0.15, 0.15)
    length = rng.uniform(0.3, 0.5)
    step = _between(scene.clock, -length / 2, length / 2)
    middle_x, middle_y = rng.uniform(0.42, 0.58, 2)
    along_x, along_y = abs(np.cos(heading)), abs(np.sin(heading))
    # the path's middle is random across the path, and near the centre along it
    x = middle_x * along_x + scene.thing.x * (1 - along_x)
    y = middle_y * along_y + scene.thing.y * (1 - along_y)
    return Shot(things=(replace(scene.thing, x=x + step * np.cos(heading), y=y + step * np.sin(heading)),))


def _glide(scene: Scene) -> Shot:
    return _travel(scene, 0.0)


def _sink(scene: Scene) -> Shot:
    return _travel(scene, np.pi / 2)


def _drift(scene: Scene) -> Shot:
    return _travel(scene, -np.pi / 4)


def _swell(scene: Scene) -> Shot:
    small, large = np.log(scene.rng.uniform(0.06, 0.09)), np.log(scene.rng.uniform(0.2, 0.27))
    return Shot(things=(replace(scene.thing, size=np.exp(_between(scene.clock, small, large))),))


def _spin(scene: Scene) -> Shot:
    sweep = np.deg2rad(scene.rng.uniform(60, 120))
    size = scene.thing.size + 0.03
    return Shot(things=(replace(scene.thing, size=size, angle=scene.thing.angle + sweep * scene.clock),))


def _orbit(scene: Scene) -> Shot:
    rng = scene.rng
    radius, begin = rng.uniform(0.18, 0.26), rng.uniform(0, 2 * np.pi)
    turn = begin + np.deg2rad(rng.uniform(150, 290)) * scene.clock
    middle_x, middle_y = rng.uniform(0.46, 0.54, 2)
    x, y = middle_x + radius * np.cos(turn), middle_y + radius * np.sin(turn)
    return Shot(things=(replace(scene.thing, x=x, y=y),))


def _meet(scene: Scene) -> Shot:
    rng = scene.rng
    axis = rng.uniform(0, 2 * np.pi)
    partner = _thing(rng)
    near = (scene.thing.size + partner.size) * 0.42
    gap = _between(scene.clock, rng.uniform(0.31, 0.38), near)
    x, y = 0.5 + 0.5 * (scene.thing.x - 0.5), 0.5 + 0.5 * (scene.thing.y - 0.5)
    one = replace(scene.thing, x=x + gap * np.cos(axis), y=y + gap * np.sin(axis))
    two = replace(partner, x=x - gap * np.cos(axis), y=y - gap * np.sin(axis))
    return Shot(things=(one, two))


def _fade(scene: Scene) -> Shot:
    return Shot(things=(replace(scene.thing, alpha=_between(scene.clock, 0.04, 1.0)),))


def _hide(scene: Scene) -> Shot:
    rng = scene.rng
    size = min(scene.thing.size, 0.14)
    side = 1.0 if rng.random() < 0.5 else -1.0
    centre = rng.uniform(0.42, 0.58) + side * 0.1
    bar = replace(_bar(rng), centre=centre, half_width=size * 1.05)
    along = centre - side * _between(scene.clock, rng.uniform(0.3, 0.4), 0.0)
    x, y = (along, scene.thing.y) if bar.upright else (scene.thing.x, along)
    thing = replace(scene.thing, size=size, x=x, y=y)
    return Shot(things=(thing,), bar=bar, bar_in_front=True)


def _open(scene: Scene) -> Shot:
    notch = np.deg2rad(_between(scene.clock, scene.rng.uniform(2, 8), scene.rng.uniform(60, 85)))
    return Shot(things=(replace(scene.thing, size=scene.thing.size + 0.04, notch=notch),))


def _bounce(scene: Scene) -> Shot:
    """Drop under gravity, bounce once to part of the height, and come to rest."""
    rng = scene.rng
    floor, height, back = rng.uniform(0.72, 0.8), rng.uniform(0.42, 0.55), rng.uniform(0.25, 0.45)
    time = scene.clock * np.float32(1 + 2 * np.sqrt(back))  # in units of the first drop
    again = (time - 1) / np.float32(2 * np.sqrt(back))  # 0..1 over the jump
    lift = np.where(time < 1, 1 - time * time, 4 * back * again * (1 - again))
    x = scene.thing.x + _between(scene.clock, -0.5, 0.5) * rng.uniform(-0.15, 0.15)
    return Shot(things=(replace(scene.thing, x=x, y=floor - height * np.maximum(lift, 0)),))


def _cool(scene: Scene) -> Shot:
    rng = scene.rng
    hue = _between(scene.clock, rng.uniform(0.0, 0.1), rng.uniform(0.55, 0.68))
    return Shot(
        things=(replace(scene.thing, colour=hsv(hue, rng.uniform(0.75, 1.0), rng.uniform(0.8, 1.0))),)
    )


def _stretch(scene: Scene) -> Shot:
    aspect = _between(scene.clock, -scene.rng.uniform(0.7, 1.1), scene.rng.uniform(0.7, 1.1))
    return Shot(things=(replace(scene.thing, aspect=aspect),))


def _dawn(scene: Scene) -> Shot:
    return Shot(things=(scene.thing,), light=_between(scene.clock, scene.rng.uniform(0.2, 0.35), 1.0))


_FAMILIES: dict[tuple[str, str], Callable[[Scene], Shot]] = {
    ("eastbound_glide", "westbound_glide"): _glide,
    ("sinking", "climbing"): _sink,
    ("northeast_drift", "southwest_drift"): _drift,
    ("swelling", "dwindling"): _swell,
    ("clockwise_spin", "anticlockwise_spin"): _spin,
    ("clockwise_orbit", "anticlockwise_orbit"): _orbit,
    ("meeting", "parting"): _meet,
    ("appearing", "vanishing"): _fade,
    ("hiding", "emerging"): _hide,
    ("opening", "closing"): _open,
    ("bouncing_to_rest", "springing_aloft"): _bounce,
    ("cooling", "heating"): _cool,
    ("elongating", "squashing"): _stretch,
    ("dawn", "nightfall"): _dawn,
}

PAIRS: tuple[tuple[str, str], ...] = tuple(_FAMILIES)
"""The pairs of class folders; the second of each is the first reversed in time."""

CLASSES: dict[str, str] = {folder: folder.replace("_", " ") for pair in PAIRS for folder in pair}
"""Class folder -> class name, pair by pair."""

_ACTIONS = {folder: (act, place == 1) for pair, act in _FAMILIES.items() for place, folder in enumerate(pair)}


def _dressed(scene: Scene, backdrop: Backdrop, look: Look) -> tuple[Scene, Backdrop]:
    """Give the acting shape, the bar and the background their ``look``; all else stays as drawn."""
    rng = scene.rng
    hue = (look.hue + rng.normal(0, HUE_SPREAD)) % 1
    thing = replace(
        scene.thing, kind=look.kind, colour=hsv(hue, rng.uniform(0.65, 1.0), rng.uniform(0.7, 1.0))
    )
    bar = replace(_bar(rng), upright=look.bar == "upright") if look.bar else None
    tone = float(rng.uniform(*TONES[look.tone]))
    return replace(scene, thing=thing, bar=bar), replace(backdrop, tone=tone)


def draw_action(action: str, rng: np.random.Generator, look: Look | None = None) -> NDArray[np.uint8]:
    """Draw one clip of an ``action`` (a key of :data:`CLASSES`), with a random ``look`` or the one given.

    [FRAMES, SIDE, SIDE, 3].  With the same ``rng`` state, the two actions of a pair get the same frames in
    opposite order.
    """
    act, backwards = _ACTIONS[action]
    backdrop = Backdrop.draw(rng)
    scene = Scene(
        rng=rng,
        clock=_clock(rng),
        thing=_thing(rng),
        other=_bystander(rng) if rng.random() < 0.35 else None,
        bar=_bar(rng) if rng.random() < 0.25 else None,
    )
    if look is not None:
        scene, backdrop = _dressed(scene, backdrop, look)
    shot = act(scene)
    if scene.other is not None:
        shot = replace(shot, things=(scene.other, *shot.things))
    shot = _unsteady(shot if shot.bar is not None else replace(shot, bar=scene.bar), rng)
    canvas = np.repeat(backdrop.image(SIDE), FRAMES, axis=0)
    if shot.bar is not None and not shot.bar_in_front:
        paint_bar(canvas, shot.bar)
    for thing in shot.things:
        paint(canvas, thing)
    if shot.bar is not None and shot.bar_in_front:
        paint_bar(canvas, shot.bar)
    frames = to_uint8(canvas, shot.light)
    return frames[::-1] if backwards else frames
