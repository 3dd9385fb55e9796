"""The result of an evaluation, and how a run stores it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clipspm.cache.checked import load_arrays, save_arrays
from clipspm.cache.disk import reading
from clipspm.errors import ClipspmError
from clipspm.tables import Table, chance, records_csv
from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.evaluation.per_class import ClassTable, class_interval
from clipspm.train_heads.evaluation.stats import Estimate, accuracies, estimate, reliability
from clipspm.train_heads.heads.protocol import PROTOCOLS, Protocol
from clipspm.train_heads.runs import RESULTS, Run

Floats32 = npt.NDArray[np.float32]
#: ends the name of the array of a protocol's confidences
_CONFIDENCE = "-confidence"


@dataclass(frozen=True)
class EvalResult:
    """Predictions and accuracy of one head on n episodes.

    ``predictions``: by protocol, [n, Q], the class 0..C-1 chosen for each query. ``facts``: everything that
    identifies the numbers, as written to ``results.json``. ``confidences``: the probability of the class
    chosen, [n, Q] by protocol; evaluations of versions before 0.3 have none.
    """

    episodes: Episodes = field(repr=False)
    predictions: dict[Protocol, npt.NDArray[np.int64]] = field(repr=False)
    facts: dict[str, Any]
    confidences: dict[Protocol, Floats32] = field(default_factory=dict, repr=False)

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols that were scored."""
        return tuple(self.predictions)

    def accuracies(self, protocol: Protocol = "inductive") -> npt.NDArray[np.float64]:
        """Return the accuracy of each episode, [n]: the input of paired comparisons."""
        return accuracies(self.predictions[protocol], self.episodes)

    def estimate(self, protocol: Protocol = "inductive") -> Estimate:
        """Return the mean accuracy and the half width of its 95 % interval, 1.96 * std / sqrt(n)."""
        return estimate(self.accuracies(protocol))

    def reliability(self, protocol: Protocol = "inductive") -> dict[str, Any]:
        """Return how far the probabilities can be believed: see :func:`~.stats.reliability`."""
        right = self.predictions[protocol] == self.episodes.query_labels
        return reliability(self.confidences[protocol], right)

    def classes(self, protocol: Protocol = "inductive") -> ClassTable:
        """Return accuracy by class and the confusion matrix."""
        return ClassTable.of(self.predictions[protocol], self.episodes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for ``results.json`` and ``--json``."""
        return {**self.facts, "protocols": {p: self._scores(p) for p in self.protocols}}

    def _scores(self, protocol: Protocol) -> dict[str, Any]:
        score, values, by_class = self.estimate(protocol), self.accuracies(protocol), self.classes(protocol)
        return {
            "accuracy": score.mean,
            "interval95": score.half,
            "classes95": class_interval(values, self.episodes),
            "per_class": _by_name(by_class.names, by_class.accuracies),
            "per_class95": _by_name(by_class.names, by_class.half),
            "confusion": by_class.confusion.tolist(),
            **({"reliability": self.reliability(protocol)} if protocol in self.confidences else {}),
        }

    def table(self) -> Table:
        """Return accuracy in per cent with its 95 % interval, a row per protocol."""
        facts, rows = self.facts, []
        for p in self.protocols:
            score, other = self.estimate(p), class_interval(self.accuracies(p), self.episodes)
            classes = f"{100 * other[0]:.1f} to {100 * other[1]:.1f}" if other else ""
            own = f" ± {100 * score.half:.2f}" if score.n > 1 else ""
            rows.append((p, f"{100 * score.mean:.2f}{own}", classes))
        spec = self.episodes.spec
        title = f"{facts['dataset']}: {spec.describe()}, {facts['episodes']} {facts['split']} episodes"
        notes = (
            f"±: 95 % interval over episodes; {chance([spec.way])}",
            *["other classes: 95 % interval over another draw of test classes"] * any(row[2] for row in rows),
            f"episodes {self.episodes.hash[:8]}, cache {cache_name(facts)}, selection: {facts['selection']}",
            *_coverage_note(facts),
        )
        return Table((facts["head"], "accuracy (%)", "other classes (%)"), rows, title, notes)

    def class_tables(self) -> list[Table]:
        """Return accuracy by class in per cent and the confusion matrix, for each protocol."""
        return [
            table for p in self.protocols for table in self.classes(p).tables(f"{self.facts['head']}, {p}")
        ]

    def csv(self, *, per_class: bool = False) -> str:
        """Return a line per protocol, in per cent; ``per_class``: per protocol and class, with confusions."""
        lines: list[dict[str, Any]] = []
        for p in self.protocols:
            where = {
                "method": self.facts["head"],
                "dataset": self.facts["dataset"],
                "request": self.episodes.spec.describe(),
                "protocol": p,
            }
            if per_class:
                lines += [{**where, **record} for record in self.classes(p).records()]
                continue
            score, other = self.estimate(p), class_interval(self.accuracies(p), self.episodes)
            low, high = other or (None, None)
            of_run: dict[str, Any] = {"accuracy": score.mean, "interval95": score.half}
            of_run |= {"classes95_low": low, "classes95_high": high, "episodes": score.n}
            of_run["episode_hash"] = self.facts["episode_hash_full"]
            facts = ("cache_fingerprint", "selection", "version")
            lines.append({**where, **of_run, **{key: self.facts[key] for key in facts}})
        return records_csv(lines)

    @property
    def name(self) -> str:
        """Its name in the run: the hash of its episodes, and a suffix if settings differ from the run's."""
        return f"{self.episodes.hash}{self.facts.get('unlike', '')}"


def cache_name(facts: Mapping[str, Any]) -> str:
    """Return the file name of the cache that was evaluated on, or else the fingerprint's first digits."""
    return str(facts.get("cache_name") or facts["cache_fingerprint"][:8])


def _by_name(names: Sequence[str], values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    return {n: None if np.isnan(v) else float(v) for n, v in zip(names, values, strict=True)}


def _coverage_note(facts: dict[str, Any]) -> list[str]:
    """Return a note for the table if videos of the data set are missing."""
    coverage = facts.get("coverage")
    if not coverage or coverage["found"] >= coverage["expected"]:
        return []
    return [f"coverage: {coverage['found']} of {coverage['expected']} {facts['split']} videos"]


#: facts that tables and comparisons need, and their types
_FACTS = {
    "dataset": str,
    "split": str,
    "episode_hash_full": str,
    "frames": int,
    "shuffle_time": bool,
    "precision": str,
    "selection": str,
    "cache_fingerprint": str,
    "head": str,
    "version": str,
}


class Stored(NamedTuple):
    """What the file of an evaluation holds: predictions and confidences, [n, Q] by protocol, and facts.

    Versions before 0.3 wrote neither confidences nor facts.
    """

    predictions: dict[Protocol, npt.NDArray[np.int64]]
    confidences: dict[Protocol, Floats32]
    facts: dict[str, Any] | None


def save_predictions(run: Run, name: str, kept: Stored) -> set[Protocol]:
    """Write an evaluation into one file, so that nobody reads halves of two; return its protocols."""
    arrays: dict[str, npt.NDArray[Any]] = {str(p): x.astype(np.int16) for p, x in kept.predictions.items()}
    arrays |= {f"{p}{_CONFIDENCE}": x for p, x in kept.confidences.items()}
    save_arrays(_predictions_file(run, name), {**arrays, "facts": np.array(json.dumps(kept.facts))})
    return set(kept.predictions)


def load_predictions(run: Run, name: str, episodes: Episodes) -> Stored:
    """Read an evaluation on ``episodes``; :class:`Unreadable` if its file is damaged."""
    path = _predictions_file(run, name)
    arrays, _ = load_arrays(path)
    with reading(path):
        found = {p: arrays[p] for p in PROTOCOLS if p in arrays}
        for array in found.values():
            if array.dtype.kind not in "iu" or array.shape != episodes.query.shape:
                raise ValueError(f"predictions of shape {array.shape} for queries of {episodes.query.shape}")
            if int(array.min()) < 0 or int(array.max()) >= episodes.spec.way:
                raise ValueError(f"a prediction is not a class 0..{episodes.spec.way - 1}")
        if not found:
            raise ValueError("it holds no predictions")
        sure = {p: arrays[f"{p}{_CONFIDENCE}"] for p in found if f"{p}{_CONFIDENCE}" in arrays}
        for array in sure.values():
            if array.dtype != np.float32 or array.shape != episodes.query.shape:
                raise ValueError(
                    f"probabilities of shape {array.shape} for queries of {episodes.query.shape}"
                )
            if not ((array >= 0) & (array <= 1)).all():
                raise ValueError("a probability is not one")
        facts = json.loads(str(arrays["facts"])) if "facts" in arrays else None
        if facts is not None:
            check_facts(facts, episodes)
    return Stored({p: array.astype(np.int64) for p, array in found.items()}, sure, facts)


def check_facts(facts: Mapping[str, Any], episodes: Episodes) -> None:
    """Raise ValueError if these are not the facts of an evaluation on ``episodes``."""
    for name, kind in _FACTS.items():
        if type(facts.get(name)) is not kind:
            raise ValueError(f"its {name} is {facts.get(name)!r:.80}, not of type {kind.__name__}")
    if facts["episode_hash_full"] != episodes.full_hash:
        raise ValueError(f"it was made on other episodes ({facts['episode_hash_full']:.16})")
    covered = facts.get("coverage") or {"found": 0, "expected": 0}
    if not isinstance(covered, dict) or {type(covered.get(k)) for k in ("found", "expected")} != {int}:
        raise ValueError(f"its coverage is {covered!r:.80}")


def _predictions_file(run: Run, name: str) -> Path:
    return run.path / f"eval-{name}.npz"


def load_evaluation(run: Run | str | Path, name: str | None = None) -> EvalResult:
    """Load an evaluation that a run holds, by name (default: the newest)."""
    run = run if isinstance(run, Run) else Run.open(run)
    evaluations = run.results().get("evaluations", {})
    if not evaluations:
        raise ClipspmError(f"{run.path} holds no evaluation yet: run `clipspm eval {run.path}`")
    name = name or list(evaluations)[-1]
    if name not in evaluations:
        raise ClipspmError(f"{run.path} holds no evaluation {name}; it has {', '.join(evaluations)}")
    hashed = name.partition("-")[0]
    file = run.path / f"episodes-{hashed}.npz"
    episodes = Episodes.load(file)
    if episodes.hash != hashed:
        raise ClipspmError(f"{file} holds other episodes ({episodes.hash}) than its name says")
    predictions, confidences, facts = load_predictions(run, name, episodes)
    if facts is None:
        facts = {k: v for k, v in evaluations[name].items() if k not in ("protocols", "selection_bias")}
        with reading(run.path / RESULTS, "is damaged"):
            check_facts(facts, episodes)
    return EvalResult(episodes, predictions, facts, confidences)
