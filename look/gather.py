"""What stored evaluations say, without scoring anything: plain facts for the report.

Shapes: n episodes, Q queries, K classes that occur in them, S training seeds.
"""

import json
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import clipspm
from clipspm.cache.disk import check_size, reading
from clipspm.look.files import FULL, row_names
from clipspm.train_heads.evaluation.per_class import ClassTable
from clipspm.train_heads.evaluation.result import EvalResult, load_evaluation
from clipspm.train_heads.evaluation.stats import Difference, Estimate, estimate, paired
from clipspm.train_heads.experiments.results import Results, Score, collect
from clipspm.train_heads.places import run_at
from clipspm.train_heads.runs import CONFIG, METRICS, Run

#: the default head, which a report is about unless told otherwise
_DEFAULT = "clip-spm"
#: examples of a confused pair, and hardest episodes that are shown
EXAMPLES, HARDEST = 2, 4


@dataclass(frozen=True)
class Query:
    """A query of an episode, by the ids of its videos: what it is, what it was taken for, and how surely.

    ``supports``: one video of each class of the episode, by class name. ``sure``: the probability of the
    class that was chosen, None where the evaluation did not keep it.
    """

    episode: int
    place: int
    video: str
    truth: str
    taken: str
    sure: float | None
    supports: dict[str, str]


@dataclass(frozen=True)
class Confusion:
    """``count`` queries of ``truth`` that were taken for ``taken``, a ``share`` of its queries."""

    truth: str
    taken: str
    count: int
    share: float
    examples: tuple[Query, ...]


@dataclass(frozen=True)
class Hard:
    """An episode that few queries were right in; ``others``: mean accuracy of the other rows on it."""

    number: int
    accuracy: float
    others: float | None
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Versus:
    """A row on the focus's episodes: its accuracy, and the focus minus it (None: the focus itself)."""

    name: str
    accuracy: Estimate
    effect: Difference | None


@dataclass(frozen=True)
class Curve:
    """Training of one run: ``loss`` and ``validation`` as (episodes, value), and where it was stopped."""

    name: str
    loss: tuple[tuple[float, float], ...]
    validation: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Facts:
    """What the runs' own files say. ``focus``: the row that details are about, with its first run."""

    results: Results
    focus: Score
    run: Run
    evaluation: EvalResult
    rivals: tuple[Versus, ...]
    shots: dict[str, tuple[tuple[int, Estimate], ...]]
    curves: tuple[Curve, ...]
    classes: ClassTable
    confusions: tuple[Confusion, ...]
    hardest: tuple[Hard, ...]
    versions: dict[str, str]

    @property
    def protocol(self) -> Any:
        """The protocol that details are about."""
        return self.focus.column.protocol


def gather(places: Sequence[str | Path] = ()) -> Facts:
    """Read the evaluations of the runs at or below ``places`` (default: the home's and the demo's).

    Details are about the first place that is a run, else the first row of an ablation, else the default
    head, else the most accurate row; inductive, where that was scored. Raises :class:`UsageError` where
    nothing was evaluated.
    """
    found = [run_at(place) for place in places]
    results = _named(collect(found))
    focus = _focus(results, found)
    at = next((i for i, run in enumerate(focus.runs) if run in found), 0)
    run = Run.open(focus.runs[at])
    evaluation = load_evaluation(run, focus.evaluations[at])
    comparable = [
        score for score in results.scores
        if score.column == focus.column and score.basis.episodes == focus.basis.episodes
    ]  # fmt: skip
    return Facts(
        results,
        focus,
        run,
        evaluation,
        _rivals(focus, comparable),
        _by_shots(results, focus),
        tuple(_curves(comparable, focus)),
        focus.classes(),
        _confusions(evaluation, focus),
        _hardest(evaluation, focus, comparable),
        _versions(evaluation),
    )


def _named(results: Results) -> Results:
    """Call rows what their ablation calls them, where all runs of a row agree and no two rows would clash."""
    known: dict[Path, str] = {}
    for folder in {run.parent.parent for score in results.scores for run in score.runs}:
        known |= row_names(folder)
    wanted = []
    for score in results.scores:
        names = {known.get(run) for run in score.runs}
        only = next(iter(names)) if len(names) == 1 else None
        wanted.append(only or score.row)
    clash = Counter(
        (name, score.column, score.basis) for name, score in zip(wanted, results.scores, strict=True)
    )
    scores = tuple(
        replace(score, row=name) if clash[name, score.column, score.basis] == 1 else score
        for name, score in zip(wanted, results.scores, strict=True)
    )
    return replace(results, scores=scores)


def _focus(results: Results, places: Sequence[Path]) -> Score:
    named = [place for place in places if (place / CONFIG).is_file()]

    def rank(score: Score) -> tuple[Any, ...]:
        given = min((named.index(run) for run in score.runs if run in named), default=len(named))
        return (
            given,
            score.row != FULL,
            not score.row.startswith(_DEFAULT),
            score.column.protocol != "inductive",
            -float(score.accuracies.mean()),
        )

    return min(results.scores, key=rank)


def _rivals(focus: Score, comparable: Sequence[Score]) -> tuple[Versus, ...]:
    mine = focus.accuracies.mean(0)
    rows = [
        Versus(
            score.row,
            estimate(score.accuracies.mean(0)),
            None if score is focus else paired(mine, score.accuracies.mean(0)),
        )
        for score in comparable
    ]
    return tuple(sorted(rows, key=lambda row: (row.effect is not None, -row.accuracy.mean)))


def _by_shots(results: Results, focus: Score) -> dict[str, tuple[tuple[int, Estimate], ...]]:
    """Return accuracy by shots of the rows that were scored at several, on the focus's data and protocol."""
    found: dict[str, dict[int, Estimate]] = {}
    for score in results.scores:
        column = score.column
        same = (column.dataset, column.protocol, column.way) == (
            focus.column.dataset, focus.column.protocol, focus.column.way,
        )  # fmt: skip
        words = column.request.split("-way ", 1)[-1].split("-shot")
        if same and len(words) == 2 and not words[1] and words[0].isdigit():
            found.setdefault(score.row, {}).setdefault(int(words[0]), estimate(score.accuracies.mean(0)))
    return {row: tuple(sorted(by.items())) for row, by in found.items() if len(by) > 1}


def _curves(comparable: Iterable[Score], focus: Score) -> Iterable[Curve]:
    for score in sorted(comparable, key=lambda score: score is not focus):
        for seed, path in zip(score.seeds, score.runs, strict=False):
            if points := _metrics(path / METRICS):
                name = score.row if len(score.seeds) == 1 else f"{score.row}, seed {seed}"
                yield Curve(name, _points(points, "loss"), _points(points, "val_accuracy"))


def _metrics(file: Path) -> list[dict[str, Any]]:
    """Read the lines of ``metrics.jsonl`` that are whole."""
    if not file.is_file():
        return []
    with reading(file):
        check_size(file)
        lines = file.read_bytes().splitlines()
    found = []
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            found.append(values)
    return found


def _points(lines: Sequence[dict[str, Any]], name: str) -> tuple[tuple[float, float], ...]:
    pairs = [(line.get("episodes", line.get("step")), line.get(name)) for line in lines]
    return tuple(
        (float(x), float(y))
        for x, y in pairs
        if isinstance(x, int | float) and isinstance(y, int | float) and np.isfinite([x, y]).all()
    )


def _query(result: EvalResult, focus: Score, episode: int, place: int) -> Query:
    drawn, protocol = result.episodes, result.protocols and focus.column.protocol
    names = [drawn.class_names[c] for c in drawn.classes[episode]]
    firsts = np.arange(drawn.spec.way) * drawn.spec.shot
    sure = result.confidences.get(protocol)  # type: ignore[call-overload]
    return Query(
        episode,
        place,
        drawn.video_ids[drawn.query[episode, place]],
        names[drawn.query_labels[episode, place]],
        names[result.predictions[protocol][episode, place]],  # type: ignore[index]
        None if sure is None else float(sure[episode, place]),
        {name: drawn.video_ids[drawn.support[episode, i]] for name, i in zip(names, firsts, strict=True)},
    )


def right_query(result: EvalResult, focus: Score) -> Query | None:
    """Return the query that was recognised most surely (the first one, without probabilities), or None."""
    right = result.predictions[focus.column.protocol] == result.episodes.query_labels  # type: ignore[index]
    if not right.any():
        return None
    sure = result.confidences.get(focus.column.protocol)  # type: ignore[call-overload]
    best = int(np.argmax(right * (1 if sure is None else sure)))
    return _query(result, focus, *divmod(best, right.shape[1]))


def _confusions(result: EvalResult, focus: Score) -> tuple[Confusion, ...]:
    """Return every confused pair, the most confused first, with its surest mistakes on different videos."""
    drawn = result.episodes
    predictions = result.predictions[focus.column.protocol]  # type: ignore[index]
    sure = result.confidences.get(focus.column.protocol)  # type: ignore[call-overload]
    labels = drawn.query_labels
    episode, place = np.nonzero(predictions != labels)
    truth = drawn.classes[episode, labels[episode, place]]
    taken = drawn.classes[episode, predictions[episode, place]]
    weight = np.zeros(len(episode)) if sure is None else sure[episode, place]
    order = np.lexsort((place, episode, -weight))
    wrong: dict[tuple[int, int], list[int]] = {}
    for i in order:
        wrong.setdefault((int(truth[i]), int(taken[i])), []).append(int(i))
    asked = Counter(np.take_along_axis(drawn.classes, labels, axis=1).ravel().tolist())
    found = []
    for (a, b), where in wrong.items():
        examples: dict[str, Query] = {}
        for i in where:
            one = _query(result, focus, int(episode[i]), int(place[i]))
            examples.setdefault(one.video, one)
            if len(examples) == EXAMPLES:
                break
        names = drawn.class_names[a], drawn.class_names[b]
        found.append(Confusion(*names, len(where), len(where) / asked[a], tuple(examples.values())))
    return tuple(sorted(found, key=lambda pair: (-pair.share, pair.truth, pair.taken)))


def _hardest(result: EvalResult, focus: Score, comparable: Sequence[Score]) -> tuple[Hard, ...]:
    own = result.accuracies(focus.column.protocol)  # type: ignore[arg-type]
    rest = [score.accuracies.mean(0) for score in comparable if score is not focus]
    others = np.mean(rest, axis=0) if rest else np.zeros_like(own)
    worst = np.lexsort((others, own))[:HARDEST]
    queries = range(result.episodes.query.shape[1])
    return tuple(
        Hard(
            int(i),
            float(own[i]),
            float(others[i]) if rest else None,
            tuple(_query(result, focus, int(i), place) for place in queries),
        )
        for i in worst
        if own[i] < 1
    )


def _versions(result: EvalResult) -> dict[str, str]:
    from importlib.metadata import version

    scored = {"clipspm": result.facts["version"], "torch": str(result.facts.get("torch", "not recorded"))}
    here = {name: version(name) for name in ("torch", "numpy", "matplotlib")}
    return {
        **{f"{name}, of the evaluation": said for name, said in scored.items()},
        "clipspm, of this page": clipspm.__version__,
        **{f"{name}, of this page": said for name, said in here.items()},
        "Python, of this page": platform.python_version(),
    }
