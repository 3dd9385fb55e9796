"""The report as one HTML page: no script, no request, nothing that is not in the file."""

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipspm.cache.disk import write_text
from clipspm.cache.spec import CacheSpec
from clipspm.look.clips import Strip
from clipspm.look.figures import COLOURS
from clipspm.look.report import Report, make_report
from clipspm.tables import Table, chance
from clipspm.terminal import one_line
from clipspm.train_heads.evaluation.stats import Estimate
from clipspm.train_heads.experiments.ablation_table import signed

#: classes up to which the confusion matrix is a table of all pairs; for more, the most confused pairs
_MATRIX = 40
#: shades of the cells of the confusion matrix
_SHADES = 8
#: bytes of pictures in a page
_MOST_PICTURES = 3_500_000
_POLICY = "default-src 'none'; img-src data:; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class _Cell:
    """A cell of the confusion matrix: per cent, shade 0 to :data:`_SHADES`, and the pair that it opens."""

    text: str
    shade: str
    pair: str
    label: str


def write_report(
    path: Path, places: Sequence[str | Path] = (), *, figures: Path | None = None, **how: Any
) -> Report:
    """Make the report of the runs at or below ``places``, and write its page to ``path``.

    ``figures``: a folder for each figure as SVG and PNG. ``how``: further arguments of
    :func:`~.report.make_report`.
    """
    report = make_report(places, png=figures is not None, **how)
    write_text(path, as_html(report))
    if figures is not None:
        report.save_figures(figures)
    return report


def as_html(report: Report) -> str:
    """Return the page. The same report gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("clipspm.look"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"line": one_line, "percent": _percent, "within": _within}
    pictures = _pictures(report)
    style = environment.get_template("report.css").render(
        colours={name: {"light": light, "dark": dark} for name, (light, dark) in COLOURS.items()},
        shades=range(_SHADES + 1),
        pictures=[(f"v{i}", strip) for i, strip in enumerate(pictures.values())],
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    of_video = {name: f"v{i}" for i, name in enumerate(pictures)}
    page = environment.get_template("report.html").render(
        style=Markup(style),
        policy=_POLICY.format(digest),
        report=report,
        facts=report.facts,
        seen=report.seen,
        figure=lambda name: _figure(report, name),
        has=lambda name: name in report.drawings,
        picture=of_video.get,
        tables=_tables(report),
        matrix=_matrix(report),
        pairs=[_pair_id(report, pair) for pair in report.facts.confusions],
        signed=signed,
        chance=chance([report.facts.focus.column.way]),
        provenance=_provenance(report),
        commands=_commands(report),
        config=json.dumps(report.facts.run.config.as_dict(), indent=1),
    )
    return page.lstrip()


def _figure(report: Report, name: str) -> Markup:
    return Markup(report.drawings[name].inline())  # matplotlib escapes what it writes


def _pictures(report: Report) -> dict[str, Strip]:
    """Return the pictures that fit into the page."""
    found, size = {}, 0
    for name, strip in report.strips.by_id.items():
        size += len(strip.uri)
        if size > _MOST_PICTURES:
            break
        found[name] = strip
    return found


def _percent(share: float, digits: int = 1) -> str:
    return "–" if np.isnan(share) else f"{round(100 * share, digits) + 0.0:.{digits}f} %"  # no -0


def _within(score: Estimate) -> str:
    return f"{100 * score.mean:.1f} ± {100 * score.half:.1f}"


def _tables(report: Report) -> dict[str, Table]:
    """Return the tables of the page by name."""
    facts, seen = report.facts, report.seen
    found = {"results": _focus_first(report, facts.results.table())}
    if published := facts.results.published_table():
        found["published"] = published
    rows = [
        (row.name, _within(row.accuracy), signed(row.effect) if row.effect else "") for row in facts.rivals
    ]
    columns = ("", "accuracy (%)", f"{facts.focus.row} − row (points)")
    note = "paired by episode [95 % bootstrap interval]; episodes share clips and classes"
    found["rivals"] = Table(columns, rows, f"On the same {facts.rivals[0].accuracy.n} episodes", [note])
    found["classes"] = facts.classes.tables("Accuracy by class")[0]
    if shots := facts.shots or ({facts.focus.row: seen.shots} if seen and seen.shots else {}):
        counts = sorted({count for points in shots.values() for count, _ in points})
        lines = [
            (name, *(_within(dict(points)[n]) if n in dict(points) else "" for n in counts))
            for name, points in shots.items()
        ]
        found["shots"] = Table(("", *(f"{n}-shot (%)" for n in counts)), lines, "Accuracy over shots")
    if facts.curves:
        lines = [
            (
                one.name,
                f"{one.loss[-1][0]:.0f}" if one.loss else "",
                f"{one.loss[-1][1]:.3g}" if one.loss else "",
                f"{100 * max(y for _, y in one.validation):.1f}" if one.validation else "",
            )
            for one in facts.curves
        ]
        columns_ = ("", "episodes", "last loss", "best validation accuracy (%)")
        found["curves"] = Table(columns_, lines, "Training")
    if seen is None:
        return found
    lines = [
        (piece.name, _within(piece.alone), signed(piece.cost), _percent(piece.share, 0))
        for piece in seen.pieces
    ]
    found["evidence"] = Table(
        ("evidence", "accuracy of it alone (%)", "cost of leaving it out (points)", "share of the margin"),
        lines,
        f"What each kind of evidence contributes, on {seen.episodes} episodes",
        [
            f"±: 95 % interval over episodes; {chance([facts.focus.column.way])}",
            "cost: paired difference [95 % bootstrap interval]",
        ],
    )
    frames = range(seen.motion.energy.shape[1])
    found["motion"] = Table(
        ("class", *(f"frame {t + 1}" for t in frames)),
        [
            *(
                (name, *(f"{100 * x:.0f}" for x in row))
                for name, row in zip(seen.motion.names, seen.motion.energy, strict=True)
            ),
            ("margin lost without", *(_percent(x, 0) for x in seen.motion.loss)),
        ],
        "Share of motion by frame, in %",
    )  # fmt: skip
    diagnosis = seen.diagnosis
    found["time"], found["gap"] = diagnosis.time_table(), diagnosis.gap_table()
    if diagnosis.look_alikes is not None:
        found["pairs"], found["alike"] = diagnosis.pairs_table(), diagnosis.alike_table()
    return found


def _focus_first(report: Report, table: Table) -> Table:
    """Order rows: the focus, then by the first number in its column, the highest first."""
    focus = report.facts.focus
    column = next((i for i, name in enumerate(table.columns) if name == focus.column.name), 1)

    def rank(row: Sequence[str]) -> tuple[bool, float]:
        first = row[column].split(" ")[0] if row[column] else "-1"
        return row[0] != focus.row, -float(first)

    return replace(table, rows=sorted(table.rows, key=rank), title="All evaluations")


def _pair_id(report: Report, pair: Any) -> str:
    names = report.facts.classes.names
    return f"pair-{names.index(pair.truth) + 1}-{names.index(pair.taken) + 1}"


def _matrix(report: Report) -> list[list[_Cell]]:
    """Return the rows of the confusion matrix; empty where there are too many classes."""
    table = report.facts.classes
    if len(table.names) > _MATRIX:
        return []
    opened = {_pair_id(report, pair) for pair in report.facts.confusions}
    rows = []
    for i, (name, counts) in enumerate(zip(table.names, table.confusion, strict=True)):
        total, row = counts.sum(), []
        for j, count in enumerate(counts):
            share = count / total if total else 0.0
            kind = "hit" if i == j else "miss"
            text = f"{100 * share:.0f}" if count else ""
            pair = f"pair-{i + 1}-{j + 1}"
            said = (
                f"{one_line(name)} taken for {one_line(table.names[j])}: {100 * share:.1f} %, show examples"
            )
            shade = f"{kind}{round(share**0.5 * _SHADES)}"
            row.append(_Cell(text, shade, pair if pair in opened and count else "", said))
        rows.append(row)
    return rows


def _provenance(report: Report) -> list[tuple[str, str]]:
    """Return what identifies the numbers: names and digests, and no folder of this machine."""
    facts = report.facts
    told, spec = facts.evaluation.facts, facts.evaluation.episodes.spec
    seed = ", ".join(map(str, facts.focus.seeds)) or "none: nothing to train"
    covered = told.get("coverage") or {}
    return [
        ("run", facts.run.path.name),
        ("head", told["head"]),
        (
            "episodes",
            f"{len(facts.evaluation.episodes)} {spec.describe()}, {told['split']} classes, {told['dataset']}",
        ),
        ("episode hash", told["episode_hash_full"]),
        ("cache", str(told.get("cache_name", ""))),
        ("cache fingerprint", told["cache_fingerprint"]),
        ("videos", f"{covered.get('found', '?')} of {covered.get('expected', '?')} of the test split"),
        ("weights", f"{told.get('weights')}, SHA-256 {told.get('weights_sha256')}"),
        ("selection", told["selection"]),
        ("training seeds", seed),
        ("frames, precision", f"{told['frames']}, {told['precision']}"),
        *facts.versions.items(),
    ]


def _commands(report: Report) -> list[str]:
    """Return commands that repeat the numbers; folders are names to fill in."""
    facts, lines = report.facts, []
    told, spec = facts.evaluation.facts, facts.evaluation.episodes.spec
    cached = report.spec
    if cached is not None:
        lines.append(f"clipspm extract --dataset {cached.dataset} {_encoder(cached)}")
    cache, run = shlex.quote(str(told.get("cache_name") or "CACHE")), shlex.quote(facts.run.path.name)
    lines.append(f"clipspm train-heads --cache {cache} --config config.json --run-dir {run}")
    special = " --unbalanced" * bool(spec.dirichlet) + " --source-disjoint" * bool(spec.sources)
    lines.append(
        f"clipspm eval {run} --test-episodes {len(facts.evaluation.episodes)} --way {spec.way} "
        f"--shots {spec.shot} --queries {spec.queries} --seed {spec.seed}{special}"
    )
    lines.append(f"clipspm report {run} --out report.html")
    return lines


def _encoder(spec: CacheSpec) -> str:
    """Return the options that name the encoder and what is cached; local folders and files by name only."""

    def named(text: str) -> str:
        prefix, _, place = text.rpartition(":")
        return shlex.quote(f"{prefix}:{Path(place).name}" if prefix else Path(place).name)

    chosen = {
        "--model": named(spec.model),
        "--pretrained": named(spec.pretrained) if spec.pretrained else "",
        "--layers": ",".join(spec.layers),
        "--frames": str(spec.frames),
        "--views": str(spec.views),
    }
    return " ".join(f"{option} {value}" for option, value in chosen.items() if value)
