"""Tabulate any number of runs, with a mark at every score that is not comparable with its column.

A row is a head with the settings that differ from its recipe's for the data set, whatever the seed; shots and
ways of training are named where they are not those of the test. A column is a data set with a request and a
protocol. A score not measured as most of its column were (episodes, coverage, features, frames, precision,
training videos, selection) has a mark, and a note says what differs.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from clipspm.cache.disk import reading
from clipspm.cache.home import demo_dirs, runs_dir
from clipspm.errors import ClipspmError, UsageError
from clipspm.progress import track
from clipspm.tables import Table, chance, records_csv
from clipspm.train_heads.config import TrainConfig, resolve_config
from clipspm.train_heads.episodes.draw import EpisodeSpec
from clipspm.train_heads.evaluation.per_class import ClassTable, class_interval
from clipspm.train_heads.evaluation.result import EvalResult, cache_name, load_evaluation
from clipspm.train_heads.evaluation.stats import Spread, estimate, spread
from clipspm.train_heads.heads.protocol import Protocol
from clipspm.train_heads.request import DEFAULT_FRAMES, DEFAULT_QUERIES
from clipspm.train_heads.runs import CONFIG, RESULTS, Run

#: settings that are not part of a row's name: seeds, and where values came from or were computed
_NOT_IN_ROWS = ("recipe", "preset", "device", "head", "head_config", "seed")

#: settings for which None means that the cache decides (imported runs have none)
_LEFT_OPEN = ("queries", "frames")


class Column(NamedTuple):
    """What was asked of the scores in one column."""

    dataset: str
    request: str
    protocol: str
    way: int

    @property
    def name(self) -> str:
        """The heading."""
        return f"{self.dataset} {self.request} {self.protocol}"


@dataclass(frozen=True)
class Basis:
    """What scores must share to be compared: how they were measured, and how their heads were trained.

    ``cache``: the file name of the features.
    """

    episodes: str
    coverage: tuple[int, int]
    features: str
    frames: int
    shuffled: bool
    precision: str
    trained_on: str
    selection: str
    cache: str = field(compare=False)

    def differences(self, other: "Basis") -> str:
        """Describe what is not as in ``other``."""
        said = {
            "episodes": f"episodes {self.episodes[:8]}",
            "coverage": f"{self.coverage[0]} of {self.coverage[1]} videos",
            "features": f"cache {self.cache} ({self.features[:8]})",
            "frames": f"{self.frames} frames",
            "shuffled": "frames shuffled" if self.shuffled else "frames in order",
            "precision": self.precision,
            "trained_on": f"other training videos ({self.trained_on[:8]})",
            "selection": f"selection {self.selection}",
        }
        return ", ".join(text for name, text in said.items() if getattr(self, name) != getattr(other, name))


@dataclass(frozen=True)
class Score:
    """A row's runs in one column: ``accuracies`` [seeds, n], by training seed and episode.

    ``seeds``: empty for a head without anything to train, whose ``accuracies`` are [1, n]. ``evaluations``:
    the name of each run's evaluation.
    """

    row: str
    column: Column
    basis: Basis
    seeds: tuple[int, ...]
    accuracies: npt.NDArray[np.float64]
    classes95: tuple[float, float] | None
    runs: tuple[Path, ...]
    evaluations: tuple[str, ...]
    versions: tuple[str, ...]

    @property
    def over_seeds(self) -> Spread | None:
        """Mean and spread over training seeds; None for a head without anything to train."""
        return spread(self.accuracies.mean(1).tolist()) if self.seeds else None

    def classes(self) -> ClassTable:
        """Return accuracy by class and the confusion matrix over all seeds, from the runs' files."""
        found = [load_evaluation(*one) for one in zip(self.runs, self.evaluations, strict=True)]
        protocol: Any = self.column.protocol
        return ClassTable.of(np.stack([one.predictions[protocol] for one in found]), found[0].episodes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; fractions, not per cent."""
        score, low_high = estimate(self.accuracies.mean(0)), self.classes95 or (None, None)
        return {
            **self._where(),
            "accuracy": score.mean,
            "interval95": score.half,
            "classes95_low": low_high[0],
            "classes95_high": low_high[1],
            "seeds": len(self.seeds),
            "seed_std": self.over_seeds.std if self.over_seeds else None,
            "episodes": score.n,
            "episode_hash": self.basis.episodes,
            "found": self.basis.coverage[0],
            "expected": self.basis.coverage[1],
            "cache_fingerprint": self.basis.features,
            "frames": self.basis.frames,
            "frames_shuffled": self.basis.shuffled,
            "precision": self.basis.precision,
            "trained_on": self.basis.trained_on,
            "selection": self.basis.selection,
            "version": " ".join(self.versions),
            "runs": " ".join(map(str, self.runs)),
        }

    def _where(self) -> dict[str, str]:
        dataset, request, protocol, _ = self.column
        return {"method": self.row, "dataset": dataset, "request": request, "protocol": protocol}

    def class_records(self) -> list[dict[str, Any]]:
        """Return a row per class, see :meth:`~.per_class.ClassTable.records`."""
        return [{**self._where(), **record} for record in self.classes().records()]

    def unlike(self, usual: Basis) -> str:
        """Describe why this score is not comparable with scores on the basis ``usual``; empty if it is.

        For a head that was neither trained nor selected, the training and selection of others do not matter.
        """
        basis = self.basis
        if not self.seeds and basis.selection == "none":
            basis = replace(basis, selection=usual.selection, trained_on=usual.trained_on)
        return basis.differences(usual)

    def text(self) -> str:
        """Return per cent with the interval over episodes, and the spread over several seeds, for a cell."""
        score, seeds = estimate(self.accuracies.mean(0)), self.over_seeds
        several = f" (s {100 * seeds.std:.1f}, {seeds.n})" if seeds and seeds.n > 1 else ""
        return f"{100 * score.mean:.1f} ± {100 * score.half:.1f}{several}"


@dataclass(frozen=True)
class Results:
    """Every evaluation of some runs. ``skipped``: directories that could not be read, and why.

    ``throughout``: by head, settings that differ from the recipe's in all its rows, and so are in no row's
    name.
    """

    scores: tuple[Score, ...]
    skipped: tuple[str, ...]
    throughout: dict[str, tuple[str, ...]]

    def as_dict(self, *, per_class: bool = False) -> dict[str, Any]:
        """Return the scores, and what was published for the same columns, as plain values for ``--json``.

        ``per_class``: each score with ``classes``, its accuracy by class and ``confusion``, its counts.
        """
        scores = [score.as_dict() for score in self.scores]
        if per_class:
            for score, own in zip(self.scores, scores, strict=True):
                own |= score.classes().as_dict()
        return {
            "scores": scores,
            "throughout": self.throughout,
            "published": self.published(),
            "skipped": list(self.skipped),
        }

    def published(self) -> list[dict[str, Any]]:
        """Return published numbers for the data sets and requests that occur; none was measured here."""
        asked = {score.column[:2] for score in self.scores}
        return [entry for entry in published() if (entry["dataset"], entry["request"]) in asked]

    def csv(self, *, per_class: bool = False) -> str:
        """Return a line per score, in per cent; ``per_class``: per score and class, with confusions."""
        if per_class:
            return records_csv([record for score in self.scores for record in score.class_records()])
        return records_csv([score.as_dict() for score in self.scores])

    def class_tables(self) -> list[Table]:
        """Return accuracy by class in per cent and the confusion matrix, for each score."""
        return [
            table
            for score in self.scores
            for table in score.classes().tables(f"{score.row}, {score.column.name}")
        ]

    def table(self) -> Table:
        """Return rows by columns, in per cent; scores that are not on their column's basis have a mark."""
        columns = sorted({score.column for score in self.scores})
        rows, marks = self.marked()
        lines = [
            [name, *(cells.get(column, "") for column in columns)]
            for (name, _), cells in sorted(rows.items(), key=lambda row: row[0])
        ]
        notes = [
            f"accuracy ± 95 % interval over episodes, in %; {chance([column.way for column in columns])}",
            *["s: standard deviation over so many training seeds"]
            * any(len(s.seeds) > 1 for s in self.scores),
            *(f"{column.name}: {_basis_note(self._usual_basis(column))}" for column in columns),
            *self._throughout_notes(),
            *(f"{mark}: not comparable with its column: {what}" for what, mark in marks.items()),
        ]
        return Table(["", *(column.name for column in columns)], lines, "Results", notes)

    def marked(self) -> tuple[dict[tuple[str, str], dict[Column, str]], dict[str, str]]:
        """Return the cells by (row, mark) and column, and the mark of each way not to be comparable."""
        marks: dict[str, str] = {}
        rows: dict[tuple[str, str], dict[Column, str]] = {}
        usual = {column: self._usual_basis(column) for column in {score.column for score in self.scores}}
        for score in self.scores:
            mark = ""
            if what := score.unlike(usual[score.column]):
                mark = marks.setdefault(what, _letter(len(marks)))
            rows.setdefault((score.row, mark), {})[score.column] = f"{score.text()} {mark}".rstrip()
        return rows, marks

    def _usual_basis(self, column: Column) -> Basis:
        """Return the basis of most scores of a column; only trained heads count, if there are any."""
        there = [score for score in self.scores if score.column == column]
        trained = [score for score in there if score.seeds] or there
        return Counter(score.basis for score in trained).most_common(1)[0][0]

    def _throughout_notes(self) -> list[str]:
        heads: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for head, settings in sorted(self.throughout.items()):
            heads[settings].append(head)
        return [f"{', '.join(who)}: {', '.join(what)}" for what, who in heads.items() if what]

    def beside_published(self) -> Table:
        """Return one table of what was measured and what was published for the same requests."""
        columns = sorted({score.column[:2] for score in self.scores}, key=lambda c: (len(c[1]), c))
        selected = {(score.row, score.column.protocol): score.basis.selection for score in self.scores}
        lines: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
        for (name, mark), cells in sorted(self.marked()[0].items()):
            for column, text in cells.items():
                how = column.protocol
                key = (f"{name}, {how}", "measured here", "frozen", selected[name, how], mark)
                lines.setdefault(key, {})[column[:2]] = text
        entries = self.published()
        for entry in entries:
            key = (*(entry[k] for k in ("method", "source", "clip", "selection")), "")
            lines.setdefault(key, {})[entry["dataset"], entry["request"]] = f"{100 * entry['accuracy']:.1f}"
        known = {(entry["dataset"], entry["request"]) for entry in entries}
        nothing = [" ".join(column) for column in columns if column not in known]
        notes = [
            *self.table().notes,
            *["published rows: each under its own protocol, not comparable with what was measured here"]
            * bool(entries),
            *[f"no published numbers are known of {', '.join(nothing)}"] * bool(nothing),
        ]
        return Table(
            ["", "source", "CLIP", "selected on", *(" ".join(column) for column in columns)],
            [[*key[:4], *(found.get(column, "") for column in columns)] for key, found in lines.items()],
            "Measured and published",
            notes,
            text=("source", "CLIP", "selected on"),
        )

    def published_table(self) -> Table | None:
        """Return a table of published numbers, if there are any."""
        entries = self.published()
        if not entries:
            return None
        columns = sorted({(entry["dataset"], entry["request"]) for entry in entries})
        rows: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
        for entry in entries:
            key = tuple(entry[k] for k in ("method", "source", "clip", "selection"))
            rows.setdefault(key, {})[entry["dataset"], entry["request"]] = f"{100 * entry['accuracy']:.1f}"
        return Table(
            ["", "source", "CLIP", "selected on", *(" ".join(column) for column in columns)],
            [[*key, *(found.get(column, "") for column in columns)] for key, found in rows.items()],
            "Published, not measured here",
            ["accuracy in %, each under its own protocol: not comparable with the table above"],
            text=("source", "CLIP", "selected on"),
        )


def published() -> list[dict[str, Any]]:
    """Return published accuracies (fractions), source, whether CLIP was fine-tuned, and selection split."""
    text = resources.files("clipspm.train_heads.experiments").joinpath("published.yaml").read_text("utf-8")
    entries = []
    for method in yaml.safe_load(text)["methods"]:
        facts = {k: method[k] for k in ("method", "source", "clip", "selection")}
        for dataset, values in method["accuracy"].items():
            for shots, value in zip((1, 3, 5), values, strict=True):
                if value is not None:
                    request = f"5-way {shots}-shot"
                    entries.append({**facts, "dataset": dataset, "request": request, "accuracy": value / 100})
    return entries


def collect(places: Iterable[str | Path] = (), *, dataset: str | None = None, split: str = "test") -> Results:
    """Read the evaluations of runs at or below ``places`` (default: the home's and the demo's).

    Runs that differ only in the seed are one score. Raises :class:`UsageError` if nothing is found.
    """
    usual = (runs_dir(), *(place / "runs" for place in demo_dirs()))
    found = [Path(place) for place in places] or [place for place in usual if place.is_dir()]
    if not found:
        raise UsageError(f"no runs yet at {runs_dir()}: `clipspm train-heads` and `clipspm eval` make them")
    ones: list[_Evaluation] = []
    skipped: list[str] = []
    runs = sorted({run for place in found for run in runs_below(place)})
    for path in track(runs, "reading", len(runs), "runs"):
        ones += [one for one in _read(path, split, skipped) if dataset in (None, one.column[0])]
    if not ones:
        where = " or ".join(map(str, found))
        why = f" ({skipped[0]})" if skipped else ""
        raise UsageError(f"no evaluated runs at {where}{why}: `clipspm eval RUN` evaluates one")
    throughout = {
        head: tuple(s for s in settings if all(s in one.settings for one in ones if one.head == head))
        for head, settings in {one.head: one.settings for one in ones}.items()
    }
    grouped: dict[tuple[str, Column, Basis], dict[int | None, _Evaluation]] = defaultdict(dict)
    for one in ones:
        own = [setting for setting in one.settings if setting not in throughout[one.head]]
        row = one.head + (f" ({', '.join(own)})" if own else "")
        twin = grouped[row, one.column, one.basis].setdefault(one.seed, one)
        if not np.array_equal(twin.accuracies, one.accuracies):
            skipped.append(f"{one.run}: {twin.run} has the same settings and seed but other predictions")
    scores = tuple(_score(key, same) for key, same in sorted(grouped.items(), key=lambda item: item[0][:2]))
    return Results(scores, tuple(dict.fromkeys(skipped)), throughout)


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation of one run under one protocol."""

    head: str
    settings: tuple[str, ...]
    column: Column
    basis: Basis
    seed: int | None  #: None if there is nothing to train
    accuracies: npt.NDArray[np.float64]
    classes95: tuple[float, float] | None
    run: Path
    evaluation: str
    version: str


def runs_below(place: Path) -> list[Path]:
    """Return the directories at or below ``place`` that hold a run with results."""
    if not place.is_dir():
        raise UsageError(f"{place} is not a folder of runs")
    return [
        Path(folder) for folder, folders, files in os.walk(place) if {CONFIG, RESULTS} <= {*folders, *files}
    ]


def _read(path: Path, split: str, skipped: list[str]) -> list[_Evaluation]:
    """Return every evaluation of a run; add what cannot be read to ``skipped``."""
    found = []
    try:
        run = Run.open(path)
        evaluations = run.results().get("evaluations", {})
    except ClipspmError as error:
        skipped.append(str(error))
        return []
    for name in evaluations:
        try:
            result = load_evaluation(run, name)
            if result.facts["split"] == split:
                with reading(path / RESULTS):
                    found += [_evaluation(run, result, protocol) for protocol in result.protocols]
        except ClipspmError as error:
            skipped.append(str(error))
    return found


def _evaluation(run: Run, result: EvalResult, protocol: Protocol) -> _Evaluation:
    facts, accuracies = result.facts, result.accuracies(protocol)
    covered = facts.get("coverage") or {"found": 0, "expected": 0}
    basis = Basis(
        facts["episode_hash_full"],
        (int(covered["found"]), int(covered["expected"])),
        facts["cache_fingerprint"],
        facts["frames"],
        facts["shuffle_time"],
        facts["precision"],
        run.cache.get("content") or "elsewhere",
        facts["selection"],
        cache_name(facts),
    )
    spec = result.episodes.spec
    return _Evaluation(
        run.config.head,
        _settings(run, facts["dataset"], spec),
        Column(facts["dataset"], spec.describe(), protocol, spec.way),
        basis,
        run.config.seed if run.trains() else None,
        accuracies,
        class_interval(accuracies, result.episodes),
        run.path,
        result.name,
        facts["version"],
    )


def _score(key: tuple[str, Column, Basis], by_seed: Mapping[int | None, _Evaluation]) -> Score:
    seeds = tuple(sorted(seed for seed in by_seed if seed is not None))
    chosen = [by_seed[seed] for seed in seeds or (None,)]
    accuracies = np.stack([one.accuracies for one in chosen])
    whole = [one.classes95 for one in chosen if one.classes95]
    mean = (float(np.mean([w[0] for w in whole])), float(np.mean([w[1] for w in whole]))) if whole else None
    versions = tuple(sorted({one.version for one in chosen}))
    runs, evaluations = tuple(one.run for one in chosen), tuple(one.evaluation for one in chosen)
    return Score(*key, seeds, accuracies, mean, runs, evaluations, versions)


@cache
def _recipe_config(recipe: str, dataset: str, head: str) -> TrainConfig:
    return resolve_config(recipe=recipe, dataset=dataset, overrides={"head": head})


def _settings(run: Run, dataset: str, spec: EpisodeSpec) -> tuple[str, ...]:
    """Return the recipe if it is not the default one, and settings that differ from it for ``dataset``."""
    config = run.config
    said = [config.recipe] * (config.recipe != "default") + ["imported"] * run.imported
    try:
        usual = _recipe_config(config.recipe, dataset, config.head)
    except UsageError:  # a recipe of another version: name the settings by their hash
        return (*said, f"settings {replace(config, seed=0).identity[:8]}")
    as_tested = replace(usual, way=spec.way, shots=spec.shot, queries=DEFAULT_QUERIES, frames=DEFAULT_FRAMES)
    mine, theirs = config.as_dict(), as_tested.as_dict()
    other = {k: v for k, v in mine.items() if k not in _NOT_IN_ROWS and v != theirs[k]}
    other = {k: v for k, v in other.items() if not (v is None and k in _LEFT_OPEN)}
    of_head = {**dict.fromkeys(theirs["head_config"]), **mine["head_config"]}
    other |= {k: v for k, v in of_head.items() if theirs["head_config"].get(k) != v}
    return (*said, *(f"{k}={json.dumps(v)}" for k, v in other.items()))


def _basis_note(basis: Basis) -> str:
    found, expected = basis.coverage
    missing = "" if found >= expected else f", {found} of {expected} videos"
    return f"episodes {basis.episodes[:8]}, cache {basis.cache}, selection {basis.selection}{missing}"


def _letter(count: int) -> str:
    return f"[{chr(ord('a') + count % 26)}{count // 26 or ''}]"
