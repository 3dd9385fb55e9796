"""The result of an ablation: configurations scored on the same episodes, with paired differences.

:class:`AblationResult` is of one number of shots, :class:`ShotsResult` of several.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipspm.cache.disk import replacing, write_json
from clipspm.tables import Table, chance, records_csv
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.evaluation.stats import (
    Difference,
    Estimate,
    Spread,
    estimate,
    paired,
    paired_over_seeds,
    spread,
)
from clipspm.train_heads.heads.protocol import Protocol


@dataclass(frozen=True)
class Row:
    """One configuration over all seeds. ``accuracies``: by protocol, [seeds, n], on the same n episodes.

    ``trained`` False: the head has nothing to train, and [1, n] stands for all seeds. ``selection``: what
    chose the weights.
    """

    name: str
    config: TrainConfig
    cells: tuple[Path, ...]
    accuracies: dict[Protocol, npt.NDArray[np.float64]] = field(repr=False)
    trained: bool = True
    selection: str = "none"

    def estimate(self, protocol: Protocol) -> Estimate:
        """Return the mean over episodes of the accuracy averaged over seeds, with its 95 % interval."""
        return estimate(self.accuracies[protocol].mean(0))

    def seeds(self, protocol: Protocol) -> Spread | None:
        """Return mean and spread over seeds; None if there is nothing to train."""
        return spread(self.accuracies[protocol].mean(1).tolist()) if self.trained else None


@dataclass(frozen=True)
class AblationResult:
    """The rows of an ablation; the others are compared with the first."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    episodes: Episodes = field(repr=False)
    facts: dict[str, Any]
    trained: int

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols that were scored."""
        return tuple(self.rows[0].accuracies)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def effect(self, name: str, protocol: Protocol = "inductive", *, of: str | None = None) -> Difference:
        """Return the accuracy of row ``of`` (default: the first) minus that of ``name``, paired by episode.

        Positive: what the row lacks helps.
        """
        base = self.rows[0] if of is None else self[of]
        return paired(*np.broadcast_arrays(*(row.accuracies[protocol] for row in (base, self[name]))))

    def effect_over_seeds(self, name: str, protocol: Protocol = "inductive") -> Spread | None:
        """Return mean and spread over seeds of :meth:`effect`; None if neither row has seeds."""
        rows = (self.rows[0], self[name])
        if not any(row.trained for row in rows):
            return None
        return paired_over_seeds(*np.broadcast_arrays(*(row.accuracies[protocol] for row in rows)))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for ``ablation.json`` and ``--json``. Fractions, not per cent."""
        rows = []
        for row in self.rows:
            scores: dict[str, Any] = {}
            for protocol in self.protocols:
                score, seeds = row.estimate(protocol), row.seeds(protocol)
                scores[protocol] = {
                    "accuracy": score.mean,
                    "interval95": score.half,
                    "over_seeds": asdict(seeds) if seeds else None,
                    "per_seed": row.accuracies[protocol].mean(1).tolist() if seeds else [],
                }
                if row is not self.rows[0]:
                    over_seeds = self.effect_over_seeds(row.name, protocol)
                    scores[protocol]["effect"] = self.effect(row.name, protocol).as_dict()
                    scores[protocol]["effect_over_seeds"] = asdict(over_seeds) if over_seeds else None
            own = {"name": row.name, "seeds": len(self.seeds) if row.trained else 0}
            rows.append({**own, "protocols": scores, "cells": [cell.name for cell in row.cells]})
        return {**self.facts, "seeds": list(self.seeds), "rows": rows}

    def table(self) -> Table:
        """Return accuracy in per cent with its 95 % interval; effect = the first row minus this one."""
        return ShotsResult((self,)).table()

    def records(self) -> list[dict[str, Any]]:
        """Return a row per protocol and configuration, for CSV, named as in the CSV of ``results``."""
        facts, lines = self.facts, []
        for protocol in self.protocols:
            for row in self.rows:
                score, seeds = row.estimate(protocol), row.seeds(protocol)
                effect = None if row is self.rows[0] else self.effect(row.name, protocol)
                lines.append(
                    {
                        "method": row.name,
                        "dataset": facts["dataset"],
                        "request": f"{facts['way']}-way {facts['shots']}-shot",
                        "protocol": protocol,
                        "accuracy": score.mean,
                        "interval95": score.half,
                        "seeds": seeds.n if seeds else 0,
                        "seed_std": seeds.std if seeds else None,
                        "effect": effect.mean if effect else None,
                        "effect_low": effect.low if effect else None,
                        "effect_high": effect.high if effect else None,
                        "episodes": score.n,
                        "episode_hash": facts["episode_hash_full"],
                        "cache_fingerprint": facts["cache_fingerprint"],
                        "selection": row.selection,
                    }
                )
        return lines


@dataclass(frozen=True)
class ShotsResult:
    """The same rows at one or several numbers of shots."""

    results: tuple[AblationResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the plain values of one result; of several, ``shots`` and ``tables`` with those of each."""
        if len(self.results) == 1:
            return self.results[0].as_dict()
        return {
            "shots": [result.facts["shots"] for result in self.results],
            "tables": [result.as_dict() for result in self.results],
        }

    def csv(self) -> str:
        """Return a line per number of shots, protocol and row, in per cent and points."""
        return records_csv([record for result in self.results for record in result.records()])

    def table(self) -> Table:
        """Return a block of rows per number of shots and protocol."""
        first = self.results[0]
        facts, full, several = first.facts, first.rows[0].name, len(first.seeds) > 1
        columns = ["", "accuracy (%)", "seeds (points)", f"{full} − row (points)"]
        rows = []
        for result in self.results:
            for protocol in result.protocols:
                rows.append([f"{result.facts['shots']}-shot, {protocol}", "", "", ""])
                for row in result.rows:
                    score, seeds = row.estimate(protocol), row.seeds(protocol)
                    rows.append(
                        [
                            row.name,
                            f"{100 * score.mean:.1f} ± {100 * score.half:.1f}",
                            f"± {100 * seeds.std:.1f}" if several and seeds else "",
                            "" if row is result.rows[0] else signed(result.effect(row.name, protocol)),
                        ]
                    )
        shots = "/".join(str(result.facts["shots"]) for result in self.results)
        hashes = " ".join(digits[:8] for r in self.results for digits in r.facts["episode_hash"].split())
        request = f"{facts['way']}-way {shots}-shot, {facts['episodes']} {facts['split']} episodes"
        notes = [
            f"±: 95 % interval over episodes; {chance([facts['way']])}",
            *["seeds: standard deviation over training seeds"] * several,
            f"{full} − row: paired difference [95 % bootstrap interval]",
            f"episodes {hashes}, cache {facts['cache_name']}, seeds {','.join(map(str, first.seeds))}, "
            f"selection: {'/'.join(dict.fromkeys(r.facts['selection'] for r in self.results))}",
        ]
        title = f"{facts['dataset']}: {request}"
        return Table(columns, rows, title, notes, block=1 + len(first.rows))

    def save(self, folder: Path) -> None:
        """Write ``ablation.json``, ``ablation.csv`` and ``ablation.tex`` into ``folder``."""
        write_json(folder / "ablation.json", self.as_dict())
        for name, text in (("ablation.csv", self.csv()), ("ablation.tex", self.table().latex())):
            with replacing(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def together(results: Sequence[AblationResult]) -> AblationResult:
    """Join results of several class splits into one: their episodes one after the other, row by row."""
    first = results[0]
    if len(results) == 1:
        return first
    rows = []
    for row in first.rows:
        same = [result[row.name] for result in results]
        accuracies = {p: np.concatenate([r.accuracies[p] for r in same], axis=1) for p in first.protocols}
        cells = tuple(cell for r in same for cell in r.cells)
        rows.append(Row(row.name, row.config, cells, accuracies, row.trained, row.selection))
    facts = {
        **first.facts,
        "episodes": sum(r.facts["episodes"] for r in results),
        **{key: " ".join(r.facts[key] for r in results) for key in ("episode_hash", "episode_hash_full")},
        "class_splits": len(results),
    }
    return AblationResult(tuple(rows), first.seeds, first.episodes, facts, sum(r.trained for r in results))


def signed(effect: Difference) -> str:
    """Return a difference in points with its interval, such as ``+1.2 [+0.3, +2.1]``."""
    return f"{100 * effect.mean:+.1f} [{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
