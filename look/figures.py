"""Figures of the report: drawn with matplotlib, written as SVG and PNG, and put into a page.

Colours are the light ones of :data:`COLOURS`; in a page they become CSS variables, so that figures follow the
page into dark mode. The same input gives the same bytes.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipspm.look.diagnose import STILL, Diagnosis
from clipspm.look.explain import Alignment, Motion, Piece, Places
from clipspm.look.gather import Curve, Facts, Versus
from clipspm.terminal import one_line
from clipspm.train_heads.evaluation.per_class import ClassTable
from clipspm.train_heads.evaluation.stats import Estimate, estimate

#: colours by name, (light, dark): text and lines, what is less important, rules, the page, and six of data
COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#57606a", "#a8b1bb"),
    "rule": ("#d0d7de", "#3b434d"),
    "paper": ("#ffffff", "#14171b"),
    "c1": ("#0b62a8", "#6cb6ff"),
    "c2": ("#b24a00", "#f5a055"),
    "c3": ("#0f7048", "#56d39b"),
    "c4": ("#93358d", "#e39adb"),
    "c5": ("#b3261f", "#ff8f87"),
    "c6": ("#6b5d00", "#d8c24a"),
}
_LIGHT = {name: light for name, (light, _) in COLOURS.items()}
_DATA = [_LIGHT[f"c{i}"] for i in range(1, 7)]
_MARKERS = "os^DvP"
#: on cells whose colour does not follow the page: not the white that does
_WHITE = "#fefefe"
#: inches, and the size of text in points: legible where 345 points are the width of a phone
_WIDTH, _TEXT = 4.8, 11.0
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clipspm",
    "text.parse_math": False,
    "font.size": _TEXT,
    "axes.titlesize": _TEXT,
    "axes.labelsize": _TEXT,
    "xtick.labelsize": _TEXT - 1,
    "ytick.labelsize": _TEXT - 1,
    "legend.fontsize": _TEXT - 1,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LIGHT["muted"],
    "axes.labelcolor": _LIGHT["ink"],
    "text.color": _LIGHT["ink"],
    "xtick.color": _LIGHT["muted"],
    "ytick.color": _LIGHT["muted"],
    "xtick.labelcolor": _LIGHT["ink"],
    "ytick.labelcolor": _LIGHT["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": _LIGHT["paper"],
    "grid.color": _LIGHT["rule"],
    "legend.frameon": False,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_VARIABLES = {light: f"var(--{name})" for name, light in _LIGHT.items()}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Drawing:
    """A figure: its ``name`` (also of its files), what it shows in words, and its SVG and PNG."""

    name: str
    words: str
    svg: str
    png: bytes | None = None

    def inline(self) -> str:
        """Return the SVG as part of a page: no style of its own, ids of its own, colours of the page."""
        ElementTree.register_namespace("", _SVG)
        root = ElementTree.fromstring(self.svg.encode())
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                    parent.remove(child)
        for element in root.iter():
            self._adapt(element)
        for name in ("width", "height", "version"):
            root.attrib.pop(name, None)
        root.set("role", "img")
        root.set("aria-label", self.words)
        return ElementTree.tostring(root, encoding="unicode")

    def _adapt(self, element: ElementTree.Element) -> None:
        style = element.attrib.pop("style", "")
        for part in filter(None, (part.strip() for part in style.split(";"))):
            key, _, value = (x.strip() for x in part.partition(":"))
            if key == "font":
                size = re.search(r"([\d.]+)px", value)
                if size:
                    element.set("font-size", size[1])
                if "bold" in value:
                    element.set("font-weight", "bold")
            elif key != "font-family":
                element.set(key, value)
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{self.name}-{value}")
            elif key == f"{{{_XLINK}}}href":
                del element.attrib[key]
                element.set("href", f"#{self.name}-{value[1:]}" if value.startswith("#") else value)
            elif value in _VARIABLES:
                element.set(key, _VARIABLES[value])
            elif "url(#" in value:
                element.set(key, _REFERENCE.sub(rf"url(#{self.name}-\1)", value))


@contextmanager
def _settings() -> Iterator[None]:
    """Draw with :data:`_SETTINGS`, quietly: a font that lacks a character is no news."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def draw(
    name: str,
    words: str,
    paint: Callable[[Axes], None],
    *,
    width: float = _WIDTH,
    height: float = 2.8,
    room: tuple[float, float, float, float] | None = None,
    png: bool = False,
) -> Drawing:
    """Draw one figure of ``width`` x ``height`` inches; ``paint`` fills its axes.

    ``room``: left, bottom, width and height of these, as shares of the figure; by default what labels leave.
    """
    with _settings():
        figure = Figure(figsize=(width, height), layout=None if room else "constrained")
        paint(figure.add_axes(room) if room else figure.subplots())
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
        picture = None
        if png:
            raster = io.BytesIO()
            figure.savefig(raster, format="png", dpi=200, metadata={"Software": None})
            picture = raster.getvalue()
    text = data.getvalue().decode("utf-8")
    return Drawing(name, words, text[text.index("<svg") :], picture)


def short(name: str, most: int = 24) -> str:
    """Return ``name`` on one line, cut to ``most`` characters."""
    text = one_line(name)
    return text if len(text) <= most else text[: most - 1] + "…"


# ---------------------------------------------------------------------------------------------- the figures


def effects(rivals: Sequence[Versus], focus: str, **how: Any) -> Drawing | None:
    """Draw the focus minus each other row, with intervals."""
    rows = [row for row in rivals if row.effect is not None]
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        for y, row in enumerate(rows):
            assert row.effect is not None
            colour = (
                _LIGHT["c1"]
                if row.effect.low > 0
                else _LIGHT["c5"]
                if row.effect.high < 0
                else _LIGHT["muted"]
            )
            _interval(axes, y, row.effect.mean, row.effect.low, row.effect.high, colour)
        axes.axvline(0, color=_LIGHT["ink"], linewidth=1)
        _names(axes, [row.name for row in rows])
        axes.set_xlabel(f"{short(focus)} − row, points")

    said = "; ".join(f"{one_line(r.name)}: {_points(r.effect.mean)}" for r in rows if r.effect is not None)
    return draw(
        "effects", f"Paired differences in points with 95 % intervals, {one_line(focus)} minus {said}.",
        paint, height=0.9 + 0.3 * len(rows), **how,
    )  # fmt: skip


def shots(rows: dict[str, tuple[tuple[int, Estimate], ...]], way: int, **how: Any) -> Drawing | None:
    """Draw accuracy over shots, a line per row."""
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        for i, (name, points) in enumerate(rows.items()):
            x = [count for count, _ in points]
            y = [100 * score.mean for _, score in points]
            bar = [100 * score.half for _, score in points]
            axes.errorbar(
                x, y, bar, label=short(name), color=_DATA[i % 6], marker=_MARKERS[i // 6 % 6], capsize=3,
                linestyle=("-", "--", ":")[i // 6 % 3],
            )  # fmt: skip
        axes.axhline(100 / way, color=_LIGHT["muted"], linestyle=":", linewidth=1)
        axes.set_xticks(sorted({count for points in rows.values() for count, _ in points}))
        axes.set_xlabel("shots")
        axes.set_ylabel("accuracy, %")
        if len(rows) > 1:
            axes.legend()

    said = "; ".join(
        f"{one_line(name)}: " + ", ".join(f"{_percent(score.mean)} at {count}" for count, score in points)
        for name, points in rows.items()
    )
    return draw("shots", f"Accuracy over shots. {said}.", paint, **how)


def curve(curves: Sequence[Curve], what: str, **how: Any) -> Drawing | None:
    """Draw ``loss`` or ``validation`` accuracy over training episodes; the first curve is the focus."""
    shown = [(one.name, getattr(one, what)) for one in curves if getattr(one, what)]
    if not shown:
        return None
    scale, unit = (100, "validation accuracy, %") if what == "validation" else (1, "loss per step")

    def paint(axes: Axes) -> None:
        for i, (name, points) in list(enumerate(shown))[:8][::-1]:
            x, y = zip(*points, strict=True)
            axes.plot(
                x, [scale * v for v in y], label=short(name), color=_DATA[i % 6],
                linewidth=2 if i == 0 else 1.2,
                marker="o" if len(x) < 30 else None, markersize=4, linestyle="-" if i < 6 else "--",
            )  # fmt: skip
        axes.set_xlabel("training episodes")
        axes.set_ylabel(unit)
        axes.grid(axis="y")
        if len(shown) > 1:
            lines, names = axes.get_legend_handles_labels()
            axes.legend(lines[::-1], names[::-1])

    first = shown[0][1]
    words = (
        f"{unit} over training: {one_line(shown[0][0])} goes from {scale * first[0][1]:.3g} to "
        f"{scale * first[-1][1]:.3g} in {first[-1][0]:.0f} episodes"
    )
    more = f"; {len(shown) - 1} more runs" if len(shown) > 1 else ""
    return draw(f"training-{what}", f"{words}{more}.", paint, **how)


def evidence(pieces: Sequence[Piece], **how: Any) -> Drawing:
    """Draw each kind of evidence's share of the margin."""

    def paint(axes: Axes) -> None:
        values = [0.0 if np.isnan(piece.share) else 100 * piece.share for piece in pieces]
        axes.barh(range(len(pieces)), values, color=_LIGHT["c1"], height=0.6)
        axes.axvline(0, color=_LIGHT["ink"], linewidth=1)
        for y, value in enumerate(values):
            axes.annotate(
                f"{round(value) + 0} %", (max(value, 0), y), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_xlim(min(0, *values) - 2, max(*values, 1) * 1.2 + 2)
        _names(axes, [piece.name for piece in pieces])
        axes.set_xlabel("share of the margin, %")

    said = ", ".join(f"{one_line(piece.name)} {_percent(piece.share)}" for piece in pieces)
    return draw(
        "evidence", f"Shares of the margin by kind of evidence: {said}.", paint,
        height=0.9 + 0.32 * len(pieces), **how,
    )  # fmt: skip


def classes(table: ClassTable, **how: Any) -> Drawing:
    """Draw accuracy by class with intervals, the worst first."""
    order = np.argsort(np.nan_to_num(table.accuracies), kind="stable")

    def paint(axes: Axes) -> None:
        for y, i in enumerate(order):
            mean = table.accuracies[i]
            half = 0 if np.isnan(table.half[i]) else table.half[i]
            _interval(axes, y, mean, max(0, mean - half), min(1, mean + half), _LIGHT["c1"])
        _names(axes, [table.names[i] for i in order])
        axes.set_xlim(-2, 102)
        axes.set_xlabel("accuracy, %")

    worst, best = order[0], order[-1]
    words = (
        f"Accuracy by class with 95 % intervals, from {_percent(table.accuracies[worst])} "
        f"({one_line(table.names[worst])}) to {_percent(table.accuracies[best])} "
        f"({one_line(table.names[best])})."
    )
    return draw("classes", words, paint, height=0.9 + 0.27 * len(order), **how)


def confusion(table: ClassTable, **how: Any) -> Drawing:
    """Draw the confusion matrix, for a file: the page has it as a table."""
    count = len(table.names)
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(100 * table.confusion / table.confusion.sum(1, keepdims=True))

    def paint(axes: Axes) -> None:
        axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=100)
        axes.invert_yaxis()
        for i, j in np.ndindex(count, count):
            if share[i, j] >= 0.5 and count <= 24:
                colour = _WHITE if share[i, j] > 55 else "#000000"
                axes.text(
                    j + 0.5, i + 0.5, f"{share[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8
                )
        axes.set_xticks(np.arange(count) + 0.5, [str(i + 1) for i in range(count)])
        axes.set_yticks(
            np.arange(count) + 0.5, [f"{i + 1} {short(n, 18)}" for i, n in enumerate(table.names)]
        )
        axes.set_xlabel("taken for")

    size = 2.2 + 0.28 * count
    return draw(
        "confusion", "Confusion matrix in per cent of each row.", paint, width=size + 1, height=size, **how
    )


def alignment(one: Alignment, place: int, name: str, **how: Any) -> Drawing:
    """Draw a query's frames against those of one class's prototype, and OTAM's paths through them."""
    similarity, path, best = one.similarity[place], one.path[place], one.best[place]
    low, high = float(one.similarity.min()), float(one.similarity.max())

    def paint(axes: Axes) -> None:
        axes.pcolormesh(similarity, cmap="cividis", vmin=low, vmax=high)
        row, column = np.nonzero(best > 0.5)
        order = np.lexsort((row, column))
        for colour, wide in (("#000000", 4.0), (_WHITE, 2.0)):
            axes.plot(column[order] + 0.5, row[order] + 0.5, color=colour, linewidth=wide)
        row, column = np.nonzero(path > 0.02)
        size = 70 * path[row, column]
        axes.scatter(column + 0.5, row + 0.5, s=size, color=_WHITE, edgecolors="#000000", linewidths=0.7)
        frames = similarity.shape[1]
        axes.set_xticks([0.5, frames - 0.5], ["1", str(frames)])
        axes.set_yticks([0.5, len(similarity) - 0.5], ["1", str(len(similarity))])
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel("prototype's frame")
        axes.set_ylabel("query's frame")

    rows = ", ".join(str(int(best[:, t].argmax()) + 1) for t in range(best.shape[1]))
    words = (
        f"Frame similarity of the query and the prototype of {one_line(one.classes[place])}, {one.stage}; "
        f"the shortest path meets these frames of the query: {rows}. Distance {one.distance[place]:.2f}."
    )
    return draw(name, words, paint, width=2.4, height=2.4, room=(0.19, 0.18, 0.78, 0.78), **how)


def motion_energy(found: Motion, **how: Any) -> Drawing:
    """Draw each class's share of motion by frame."""
    frames = found.energy.shape[1]

    def paint(axes: Axes) -> None:
        axes.pcolormesh(100 * found.energy, cmap="cividis")
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(found.names)) + 0.5, [short(name, 20) for name in found.names])
        axes.set_xticks(np.arange(frames) + 0.5, [str(t + 1) for t in range(frames)])
        axes.set_xlabel("frame")
        for i, t in np.ndindex(found.energy.shape) if found.energy.size <= 240 else ():
            dark = found.energy[i, t] < (found.energy.min() + found.energy.max()) / 2
            axes.text(
                t + 0.5, i + 0.5, f"{100 * found.energy[i, t]:.0f}", ha="center", va="center", fontsize=8,
                color=_WHITE if dark else "#000000",
            )  # fmt: skip

    mean = found.energy.mean(0)
    words = f"Share of motion by class and frame, in per cent; most is in frame {mean.argmax() + 1}."
    return draw("motion-energy", words, paint, height=0.9 + 0.28 * len(found.names), **how)


def motion_loss(found: Motion, **how: Any) -> Drawing:
    """Draw what the head loses without each frame's own content."""

    def paint(axes: Axes) -> None:
        values = 100 * np.nan_to_num(found.loss)
        axes.bar(np.arange(len(values)) + 1, values, color=_LIGHT["c1"], width=0.6)
        axes.axhline(0, color=_LIGHT["ink"], linewidth=1)
        axes.set_xticks(np.arange(len(values)) + 1)
        axes.set_xlabel("frame replaced by the clip's mean")
        axes.set_ylabel("margin lost, %")

    said = ", ".join(f"{t + 1}: {_percent(x)}" for t, x in enumerate(found.loss))
    return draw(
        "motion-loss", f"Share of the margin lost without each frame: {said}.", paint, height=2.4, **how
    )


def scatter(found: Places, index: int, **how: Any) -> Drawing:
    """Draw where videos lie, each class with its colour, marker and number."""
    placed = found.placed[index]

    def paint(axes: Axes) -> None:
        for i, c in enumerate(np.unique(found.labels)):
            points = placed.points[found.labels == c]
            colour, marker = _DATA[i % 6], _MARKERS[i // 6 % 6]
            axes.scatter(
                points[:, 0], points[:, 1], s=18, color=colour, marker=marker, linewidths=0, alpha=0.75
            )
        for i, c in enumerate(np.unique(found.labels)):
            centre = np.median(placed.points[found.labels == c], axis=0)
            box = {"boxstyle": "round,pad=0.15", "facecolor": _LIGHT["paper"], "edgecolor": _DATA[i % 6]}
            axes.text(
                centre[0], centre[1], str(c + 1), ha="center", va="center", fontsize=_TEXT - 2, bbox=box
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"{placed.method}, {placed.stage}")

    words = (
        f"{placed.method} of {len(found.labels)} test videos {placed.stage}, by class; of a video's nearest "
        f"five {_percent(placed.neighbours)} are of its class."
    )
    name = f"places-{placed.method}-{placed.stage}".lower().replace(" ", "-")
    return draw(name, words, paint, width=3.6, height=3.2, room=(0.02, 0.09, 0.96, 0.89), **how)


def time(found: Diagnosis, **how: Any) -> Drawing:
    """Draw accuracy by what was done to the frames."""
    rows = {name: estimate(x) for name, x in found.time.accuracies.items()}
    names = {STILL: "all stand still"}

    def paint(axes: Axes) -> None:
        for y, score in enumerate(rows.values()):
            _interval(axes, y, score.mean, score.mean - score.half, score.mean + score.half, _LIGHT["c1"])
        axes.axvline(100 / found.time.way, color=_LIGHT["muted"], linestyle=":", linewidth=1)
        _names(axes, [names.get(name, name) for name in rows])
        axes.set_xlabel("accuracy, % (dotted: chance)")

    said = ", ".join(f"{name}: {_percent(score.mean)}" for name, score in rows.items())
    return draw("time", f"Accuracy by the frames of the queries: {said}.", paint, height=2.4, **how)


def alike(found: Diagnosis, **how: Any) -> Drawing | None:
    """Draw two-way accuracy of look-alikes and of any two classes."""
    both = found.look_alikes
    if both is None:
        return None
    names = list(both.alike)

    def paint(axes: Axes) -> None:
        for rows, colour, shift, label in (
            (both.alike, _LIGHT["c2"], -0.14, "look-alikes"),
            (both.any, _LIGHT["c1"], 0.14, "any two"),
        ):
            for y, name in enumerate(names):
                score = estimate(rows[name])
                _interval(
                    axes, y + shift, score.mean, score.mean - score.half, score.mean + score.half, colour,
                    label if y == 0 else None, "s" if shift < 0 else "o",
                )  # fmt: skip
        axes.axvline(50, color=_LIGHT["muted"], linestyle=":", linewidth=1)
        _names(axes, names)
        axes.set_xlabel("two-way accuracy, % (dotted: chance)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.02 + 0.8 / len(names)), ncols=2)

    said = "; ".join(
        f"{one_line(name)}: {_percent(float(x.mean()))} and {_percent(float(both.any[name].mean()))}"
        for name, x in both.alike.items()
    )
    words = f"Two-way accuracy of look-alikes and of any two classes: {said}."
    return draw("look-alikes", words, paint, height=1.3 + 0.36 * len(names), **how)


def gap(found: Diagnosis, **how: Any) -> Drawing:
    """Draw distances to the same class and to others, by stage."""
    rows = [
        (f"{name.replace(' to ', '–')}, {stage}", float(same.mean()), float(other.mean()))
        for stage, one in found.gaps.items()
        for name, (same, other) in one.rows().items()
    ]

    def paint(axes: Axes) -> None:
        for y, (_, same, other) in enumerate(rows):
            axes.plot([same, other], [y, y], color=_LIGHT["muted"], linewidth=1.5, zorder=1)
            axes.scatter(
                [same], [y], color=_LIGHT["c1"], s=34, zorder=2, label="same class" if y == 0 else None
            )
            axes.scatter(
                [other],
                [y],
                color=_LIGHT["c2"],
                s=34,
                marker="s",
                zorder=2,
                label="others" if y == 0 else None,
            )
        _names(axes, [name for name, *_ in rows], 34)
        axes.set_xlabel("cosine distance")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.02 + 0.8 / len(rows)), ncols=2)

    said = "; ".join(f"{name}: {same:.2f} and {other:.2f}" for name, same, other in rows)
    words = f"Cosine distances to the same class and to others. {said}."
    return draw("gap", words, paint, height=1.3 + 0.3 * len(rows), **how)


def _interval(
    axes: Axes, y: float, mean: float, low: float, high: float, colour: str, label: str | None = None,
    marker: str = "o",
) -> None:  # fmt: skip
    axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2)
    axes.plot([100 * mean], [y], color=colour, marker=marker, linestyle="", label=label)


def _names(axes: Axes, names: Sequence[str], most: int = 24) -> None:
    axes.set_yticks(range(len(names)), [short(name, most) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _percent(share: float) -> str:
    return "unknown" if np.isnan(share) else f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def of_facts(facts: Facts, **how: Any) -> list[Drawing]:
    """Draw what needs no scoring."""
    found = [
        effects(facts.rivals, facts.focus.row, **how),
        shots(facts.shots, facts.focus.column.way, **how),
        curve(facts.curves, "loss", **how),
        curve(facts.curves, "validation", **how),
        classes(facts.classes, **how),
    ]
    return [one for one in found if one is not None]
