"""Compare two runs, or two sets of runs that differ in their seeds, on the same episodes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipspm.errors import UsageError
from clipspm.tables import Table
from clipspm.train_heads.evaluation.result import cache_name, load_evaluation
from clipspm.train_heads.evaluation.stats import Difference, Spread, estimate, paired, paired_over_seeds
from clipspm.train_heads.experiments.results import runs_below
from clipspm.train_heads.heads.protocol import PROTOCOLS, Protocol
from clipspm.train_heads.runs import CONFIG, Run

#: facts of an evaluation in which two sides should agree, and their names
_COMPARED = {
    "cache_fingerprint": "features",
    "selection": "selection splits",
    "weights": "weights",
    "frames": "frames",
    "shuffle_time": "shuffled frames",
    "precision": "precisions",
}


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its ``seeds`` and, by protocol, ``accuracies`` [seeds, n]."""

    name: str
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]
    accuracies: dict[Protocol, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Comparison:
    """``first`` minus ``second`` on the episodes ``episode_hash``."""

    first: Side
    second: Side
    episode_hash: str
    request: str
    notes: tuple[str, ...]

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols that both were scored under."""
        return tuple(p for p in self.first.accuracies if p in self.second.accuracies)

    def difference(self, protocol: Protocol) -> Difference:
        """Return the difference paired by episode, averaged over seeds first, with a bootstrap interval."""
        a, b = self.first.accuracies[protocol], self.second.accuracies[protocol]
        return paired(a.mean(0), b.mean(0))

    def over_seeds(self, protocol: Protocol) -> Spread | None:
        """Return the difference seed by seed; None unless both sides have the same two or more seeds."""
        if self.first.seeds != self.second.seeds or len(self.first.seeds) < 2:
            return None
        return paired_over_seeds(self.first.accuracies[protocol], self.second.accuracies[protocol])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; fractions, not per cent."""
        by_protocol = {}
        for p in self.protocols:
            seeds = self.over_seeds(p)
            by_protocol[p] = {
                "first": float(self.first.accuracies[p].mean()),
                "second": float(self.second.accuracies[p].mean()),
                "difference": self.difference(p).as_dict(),
                "over_seeds": asdict(seeds) if seeds else None,
            }
        sides = {
            name: {"runs": [str(run) for run in side.runs], "seeds": list(side.seeds)}
            for name, side in (("first", self.first), ("second", self.second))
        }
        return {
            "episode_hash": self.episode_hash,
            **sides,
            "protocols": by_protocol,
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """Return a table in per cent, a row per protocol."""
        rows = []
        for p in self.protocols:
            cells = []
            for side in (self.first, self.second):
                score = estimate(side.accuracies[p].mean(0))
                cells.append(f"{100 * score.mean:.2f} ± {100 * score.half:.2f}")
            effect, seeds = self.difference(p), self.over_seeds(p)
            spread = f"{100 * seeds.mean:+.2f}, s {100 * seeds.std:.2f} ({seeds.n})" if seeds else ""
            signed = f"{100 * effect.mean:+.2f} [{100 * effect.low:+.2f}, {100 * effect.high:+.2f}]"
            rows.append((p, *cells, signed, spread))
        notes = (
            f"A: {self.first.name}",
            f"B: {self.second.name}",
            "±: 95 % interval over episodes; A − B: paired by episode [95 % bootstrap interval]",
            *["over seeds: mean and standard deviation of A − B, seed by seed"]
            * any(row[-1] for row in rows),
            *self.notes,
        )
        columns = ("", "A (%)", "B (%)", "A − B (points)", "over seeds (points)")
        return Table(columns, rows, f"{self.request}, episodes {self.episode_hash[:8]}", notes)


def compare(
    first: str | Path | Sequence[str | Path],
    second: str | Path | Sequence[str | Path],
    *,
    episodes: str | None = None,
) -> Comparison:
    """Compare two runs; a side is a run directory, a folder of runs that differ in seeds, or several.

    ``episodes``: a hash, if both hold several evaluations (default: the newest in common). Raises
    :class:`UsageError` if they have no episodes in common.
    """
    sides = [_runs(side) for side in (first, second)]
    found = [[list(run.results().get("evaluations", {})) for run in side] for side in sides]
    held = [[set(names) for names in side] for side in found]
    common = set.intersection(*(names for side in held for names in side))
    if episodes is not None:
        common &= {name for name in common if name.startswith(episodes)}
    if not common:
        said = " and ".join(", ".join(sorted(set.union(*side))) or "none" for side in held)
        wanted = f" {episodes}" if episodes else ""
        raise UsageError(
            f"the two sides have no episodes{wanted} in common: they were evaluated on {said}. Run `clipspm "
            "eval` on both with the same split, way, shots, queries, number of episodes and seed"
        )
    name = max(common, key=found[0][0].index)
    (one, facts, request), (two, others, _) = (_side(side, name) for side in sides)
    if not set(one.accuracies) & set(two.accuracies):
        raise UsageError(f"{one.name} and {two.name} were scored on {name} under no protocol in common")
    notes = [
        f"{what} differ: {', '.join(facts[key])} / {', '.join(others[key])}"
        for key, what in _COMPARED.items()
        if facts[key] != others[key] or len(facts[key]) > 1
    ]
    return Comparison(one, two, name, request, tuple(notes))


def _runs(side: str | Path | Sequence[str | Path]) -> list[Run]:
    places = [side] if isinstance(side, str | Path) else list(side)
    runs = []
    for place in places:
        path = Path(place)
        alone = os.path.lexists(path / CONFIG) or not path.is_dir()
        runs += [Run.open(path)] if alone else [Run.open(below) for below in runs_below(path)]
    if not runs:
        raise UsageError(f"{' '.join(map(str, places))} holds no evaluated run")
    kinds = {(replace(run.config, seed=0).identity, run.cache.get("content")) for run in runs}
    seeds = [run.config.seed for run in runs]
    if len(kinds) > 1:
        raise UsageError(
            f"{' '.join(map(str, places))} holds runs of different settings or training videos; a side may "
            "differ in seeds only"
        )
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"{' '.join(map(str, places))} holds two runs of the same settings and seed")
    return sorted(runs, key=lambda run: run.config.seed)


def _fact(facts: Mapping[str, Any], key: str) -> str:
    if key == "cache_fingerprint":
        return f"{cache_name(facts)} ({facts[key][:8]})"
    return str(facts.get(key))


def _side(runs: list[Run], name: str) -> tuple[Side, dict[str, list[str]], str]:
    """Return the side, what it was measured with (several values if its runs differ), and the request."""
    results = [load_evaluation(run, name) for run in runs]
    protocols: list[Protocol] = [p for p in PROTOCOLS if all(p in result.protocols for result in results)]
    facts = {key: sorted({_fact(result.facts, key) for result in results}) for key in _COMPARED}
    shown = runs[0].path.name if len(runs) == 1 else f"{runs[0].path.name} and {len(runs) - 1} more"
    side = Side(
        shown,
        tuple(run.path for run in runs),
        tuple(run.config.seed for run in runs),
        {p: np.stack([result.accuracies(p) for result in results]) for p in protocols},
    )
    return side, facts, f"{results[0].facts['dataset']}: {results[0].episodes.spec.describe()}"
