"""Captioned stills to train the tiny CLIP: captions say where things are and how they look, not what they do.

Stills are drawn with :mod:`clipspm.extract.demo.shapes` and random attributes; none is a frame of a clip.
They come in groups that share all but a few attributes, so that the captions of a group differ in position,
size, rotation or opacity rather than in the background. Shape letters: N stills, S pixels per side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspm.extract.demo.shapes import (
    COLOURS,
    KINDS,
    SIDE,
    SYMMETRY,
    Backdrop,
    Thing,
    bar_cover,
    blend,
    coverage,
    hsv,
    stack_backdrops,
    to_uint8,
)

SIZES = ("minute", "tiny", "small", "medium", "big", "large", "huge")
COLUMNS = ("far left", "left", "inner left", "middle", "inner right", "right", "far right")
ROWS = ("highest", "high", "upper", "central", "lower", "low", "lowest")
OPACITIES = ("ghostly", "faint", "pale", "dense", "solid")
ASPECTS = ("flat", "wide", "even", "tall", "slender")
NOTCHES = ("slit", "narrow notch", "broad notch", "giant notch")
LIGHTS = ("gloomy", "dim", "soft", "clear", "full")
COVERED = ("beside", "slightly under", "half under", "mostly under")
_PLAIN = (
    "upright",
    "level",
    "grey",
    "bar",
    "tilted",
    "and",
    "with",
    "dark",
    "bright",
    "backdrop",
    "light",
    "under",
)


def _words() -> tuple[str, ...]:
    phrases = (
        *SIZES,
        *COLUMNS,
        *ROWS,
        *COLOURS,
        *OPACITIES,
        *ASPECTS,
        *NOTCHES,
        *LIGHTS,
        *COVERED,
        *KINDS,
        *_PLAIN,
    )
    words = {word for phrase in phrases for word in phrase.split()}
    # longest first, because the tokenizer's regex takes the first alternative that matches
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


WORDS: tuple[str, ...] = _words()
"""The words that captions are made of (besides "a", "on", "at" and digits), one token each."""

Draw = Callable[[np.random.Generator, int], NDArray[Any]]


def _uniform(low: float, high: float) -> Draw:
    return lambda rng, n: rng.uniform(low, high, n)


def _sometimes(share: float, low: float, high: float, otherwise: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> NDArray[Any]:
        return np.where(rng.random(n) < share, rng.uniform(low, high, n), otherwise)

    return draw


def _kind(rng: np.random.Generator, n: int) -> NDArray[Any]:
    return rng.integers(len(KINDS), size=n)


def _coin(share: float) -> Draw:
    return lambda rng, n: (rng.random(n) < share).astype(np.float64)


ATTRIBUTES: dict[str, Draw] = {
    "kind": _kind,
    "x": _uniform(0.1, 0.9),
    "y": _uniform(0.1, 0.9),
    "size": _uniform(0.055, 0.28),
    "angle": _uniform(0, 360),
    "hue": _uniform(0, 1),
    "alpha": _sometimes(0.3, 0.05, 1.0, 1.0),
    "aspect": _sometimes(0.5, -1.1, 1.1, 0.0),
    "notch": _sometimes(0.4, 2, 85, 0.0),
    "light": _sometimes(0.4, 0.15, 1.3, 1.0),
    "other": _coin(0.35),
    "other_kind": _kind,
    "other_x": _uniform(0.1, 0.9),
    "other_y": _uniform(0.1, 0.9),
    "other_size": _uniform(0.05, 0.17),
    "other_angle": _uniform(0, 360),
    "other_hue": _uniform(0, 1),
    "bar": _coin(0.3),
    "bar_front": _coin(0.6),
    "bar_centre": _uniform(0.2, 0.8),
    "bar_half": _uniform(0.09, 0.19),
    "bar_upright": _coin(0.5),
}
"""How each attribute of a still is drawn; angles in degrees, lengths in frame sides."""

_REDRAWN = 0.75  # probability that an attribute is drawn anew for a still of a group


@dataclass(frozen=True)
class Stills:
    """A batch of stills and their captions."""

    images: NDArray[np.uint8]
    """[N, S, S, 3]"""
    captions: list[str]
    """One per still."""
    words: list[dict[str, str]]
    """For each still, attribute -> word; its caption uses some of them."""


def _bin(names: Sequence[str], value: float, low: float, high: float, rng: np.random.Generator) -> str:
    """The name of the bin of ``value``, with noise of a third of a bin so that neighbours overlap."""
    place = (value - low) / (high - low) * len(names) + rng.normal(0, 0.35)
    return names[int(np.clip(np.floor(place), 0, len(names) - 1))]


def tilts(kind: str) -> list[int]:
    """The rotations, in degrees, that captions distinguish for ``kind``."""
    turn = SYMMETRY[kind]
    steps = turn // 18 if turn < 120 else turn // 20
    return [step * turn // steps for step in range(steps)]


def _tilt(kind: str, degrees: float, rng: np.random.Generator) -> str:
    named, turn = tilts(kind), SYMMETRY[kind]
    return str(named[round((degrees % turn) / turn * len(named) + rng.normal(0, 0.25)) % len(named)])


def _hue(hue: float, rng: np.random.Generator) -> str:
    return COLOURS[round(hue * len(COLOURS) + rng.normal(0, 0.3)) % len(COLOURS)]


def _describe(row: dict[str, Any], tone: float, covered: float, rng: np.random.Generator) -> dict[str, str]:
    """The word for each attribute that is visible."""
    upright = row["bar_upright"] > 0.5
    words = {
        "backdrop": "dark" if tone < 0.45 else "bright",
        "light": _bin(LIGHTS, row["light"], 0.15, 1.15, rng),
    }
    if row["bar"] > 0.5:
        words["bar"] = "upright" if upright else "level"
        words["bar_place"] = _bin(COLUMNS if upright else ROWS, row["bar_centre"], 0.1, 0.9, rng)
        if row["bar_front"] > 0.5:
            words["covered"] = _bin(COVERED, covered, 0, 0.85, rng)
    if row["other"] > 0.5:
        words["other"] = KINDS[int(row["other_kind"])]
        words["other_colour"] = _hue(row["other_hue"], rng)
        words["other_row"] = _bin(ROWS, row["other_y"], 0.1, 0.9, rng)
        words["other_column"] = _bin(COLUMNS, row["other_x"], 0.1, 0.9, rng)
    if covered < 0.85:
        kind = KINDS[int(row["kind"])]
        words["kind"] = kind
        words["tilt"] = _tilt(kind, row["angle"], rng)
        words["size"] = _bin(
            SIZES, float(np.log(row["size"])), float(np.log(0.055)), float(np.log(0.28)), rng
        )
        words["opacity"] = _bin(OPACITIES, row["alpha"], 0, 1, rng)
        words["aspect"] = _bin(ASPECTS, row["aspect"], -1.1, 1.1, rng)
        words["colour"] = _hue(row["hue"], rng)
        words["row"] = _bin(ROWS, row["y"], 0.1, 0.9, rng)
        words["column"] = _bin(COLUMNS, row["x"], 0.1, 0.9, rng)
        if row["notch"] > 0:
            words["notch"] = _bin(NOTCHES, row["notch"], 0, 85, rng)
    return words


def _caption(words: dict[str, str], rng: np.random.Generator) -> str:
    """A caption with the shape and two or three other attributes, preferring unusual ones.

    Short captions teach more than complete ones: often only position or size then tells two stills of a
    batch apart.
    """
    bar_name = f"a {words['bar']} grey bar at {words['bar_place']}" if "bar" in words else ""
    if "kind" not in words:
        return bar_name
    plain = {"opacity": OPACITIES[-1], "aspect": ASPECTS[2], "light": LIGHTS[-1]}
    weights = {"colour": 1.0, "place": 2.0, "size": 1.0, "tilt": 1.2, "backdrop": 0.2}
    weights |= {name: 0.1 if words[name] == common else 1.5 for name, common in plain.items()}
    weights |= {name: 1.0 for name in ("notch", "bar", "other") if name in words}
    share = np.array(list(weights.values())) / sum(weights.values())
    told = set(rng.choice(list(weights), size=int(rng.integers(2, 4)), replace=False, p=share))
    said = [
        "a",
        *(words[name] for name in ("size", "opacity", "aspect", "colour") if name in told),
        words["kind"],
    ]
    if "tilt" in told:
        said.append(f"tilted {words['tilt']}")
    if "place" in told:
        said.append(f"at {words['row']} {words['column']}")
    if "notch" in told:
        said.append(f"with a {words['notch']}")
    if "bar" in told:
        said.append(f"{words.get('covered', 'on')} {bar_name}")
    if "other" in told:
        other = f"{words['other_colour']} {words['other']} at {words['other_row']} {words['other_column']}"
        said.append(f"and a {other}")
    said.extend(f"{words[name]} {name}" for name in ("backdrop", "light") if name in told)
    return " ".join(said)


def _paint_all(canvas: NDArray[Any], drawn: NDArray[Any], columns: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Paint one shape on each still of ``drawn`` (indices). Returns its coverage of all stills, [N, S, S]."""
    covers = np.zeros(canvas.shape[:3], dtype=np.float32)
    for index, kind in enumerate(KINDS):
        rows = drawn[columns["kind"][drawn] == index]
        if not len(rows):
            continue
        part = {name: values[rows] for name, values in columns.items() if name != "kind"}
        thing = Thing(
            kind=kind,
            x=part["x"],
            y=part["y"],
            size=part["size"],
            angle=np.deg2rad(part["angle"]),
            aspect=part.get("aspect", 0.0),
            notch=np.deg2rad(part.get("notch", np.zeros(1))),
        )
        cover = coverage(thing, len(rows), canvas.shape[1])
        layer = canvas[rows]
        colour = hsv(part["hue"], part["saturation"], part["value"])
        blend(layer, cover, colour, part.get("alpha", 1.0))
        canvas[rows], covers[rows] = layer, cover
    return covers


def draw_stills(rng: np.random.Generator, *, groups: int, variants: int) -> Stills:
    """Draw ``groups * variants`` captioned stills; the variants of a group differ in a few attributes."""
    count = groups * variants
    columns = {name: np.repeat(draw(rng, groups), variants) for name, draw in ATTRIBUTES.items()}
    first = np.arange(count) % variants == 0
    for name, draw in ATTRIBUTES.items():
        fresh = (rng.random(count) < _REDRAWN) & ~first
        columns[name] = np.where(fresh, draw(rng, count), columns[name])
    for name, low in (("saturation", 0.65), ("value", 0.7), ("other_saturation", 0.65), ("other_value", 0.7)):
        columns[name] = np.repeat(rng.uniform(low, 1, groups), variants)

    backdrops = [Backdrop.draw(rng) for _ in range(groups)]
    canvas = np.repeat(stack_backdrops(backdrops, SIDE), variants, axis=0)
    everyone, has_bar = np.arange(count), columns["bar"] > 0.5
    greys = np.repeat(
        hsv(rng.random(groups), rng.uniform(0, 0.25, groups), rng.uniform(0.3, 0.7, groups)), variants, 0
    )

    def paint_bars(rows: NDArray[Any]) -> NDArray[Any]:
        cover = bar_cover(
            len(rows),
            SIDE,
            centre=columns["bar_centre"][rows],
            half_width=columns["bar_half"][rows],
            upright=columns["bar_upright"][rows],
        )
        layer = canvas[rows]
        blend(layer, cover, greys[rows], 1.0)
        canvas[rows] = layer
        return cover

    in_front = has_bar & (columns["bar_front"] > 0.5)
    if np.any(has_bar & ~in_front):
        paint_bars(everyone[has_bar & ~in_front])
    others = {name[len("other_") :]: values for name, values in columns.items() if name.startswith("other_")}
    _paint_all(canvas, everyone[columns["other"] > 0.5], others)
    cover = _paint_all(canvas, everyone, columns)
    covered = np.zeros(count)
    if np.any(in_front):
        rows = everyone[in_front]
        bars = paint_bars(rows)
        covered[rows] = (cover[rows] * bars).sum((1, 2)) / np.maximum(cover[rows].sum((1, 2)), 1e-3)

    words = [
        _describe(
            {name: values[i] for name, values in columns.items()},
            backdrops[i // variants].tone,
            float(covered[i]),
            rng,
        )
        for i in range(count)
    ]
    return Stills(to_uint8(canvas, columns["light"]), [_caption(said, rng) for said in words], words)
