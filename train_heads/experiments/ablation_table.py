"""Rows of configurations scored on the same episodes, with paired differences: the result of an ablation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipspm.cache.disk import replacing, write_json
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
from clipspm.train_heads.tables import Table


@dataclass(frozen=True)
class Row:
    """One configuration over all seeds. ``accuracies``: by protocol, [seeds, n], on the same n episodes."""

    name: str
    config: TrainConfig
    cells: tuple[Path, ...]
    accuracies: dict[Protocol, npt.NDArray[np.float64]] = field(repr=False)

    def estimate(self, protocol: Protocol) -> Estimate:
        """Mean over episodes of the accuracy averaged over seeds, with its 95 % interval."""
        return estimate(self.accuracies[protocol].mean(0))

    def seeds(self, protocol: Protocol) -> Spread:
        """Mean and spread over seeds."""
        return spread(self.accuracies[protocol].mean(1).tolist())


@dataclass(frozen=True)
class AblationResult:
    """The rows, the first of them the one that the others are compared with."""

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
        """Accuracy of ``of`` (default: the first row) minus that of row ``name``, paired by episode.

        Positive: what the row lacks helps.
        """
        base = self.rows[0] if of is None else self[of]
        return paired(base.accuracies[protocol], self[name].accuracies[protocol])

    def effect_over_seeds(self, name: str, protocol: Protocol = "inductive") -> Spread:
        """The same difference, one per seed: mean and spread."""
        return paired_over_seeds(self.rows[0].accuracies[protocol], self[name].accuracies[protocol])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``ablation.json`` and ``--json``. Fractions, not per cent."""
        rows = []
        for row in self.rows:
            scores: dict[str, Any] = {}
            for protocol in self.protocols:
                score = row.estimate(protocol)
                scores[protocol] = {
                    "accuracy": score.mean,
                    "interval95": score.half,
                    "over_seeds": asdict(row.seeds(protocol)),
                    "per_seed": row.accuracies[protocol].mean(1).tolist(),
                }
                if row is not self.rows[0]:
                    scores[protocol]["effect"] = self.effect(row.name, protocol).as_dict()
                    scores[protocol]["effect_over_seeds"] = asdict(self.effect_over_seeds(row.name, protocol))
            rows.append({"name": row.name, "protocols": scores, "cells": [cell.name for cell in row.cells]})
        return {**self.facts, "seeds": list(self.seeds), "rows": rows}

    def table(self) -> Table:
        """For people: accuracy in per cent with its 95 % interval; effect = the first row minus this one."""
        first, several = self.rows[0].name, len(self.seeds) > 1
        columns = ["", "protocol", "accuracy", *(["seeds"] if several else []), f"{first} − row"]
        rows = []
        for protocol in self.protocols:
            for row in self.rows:
                score = row.estimate(protocol)
                rows.append(
                    [
                        row.name,
                        protocol,
                        f"{100 * score.mean:.1f} ± {100 * score.half:.1f}",
                        *([f"± {100 * row.seeds(protocol).std:.1f}"] if several else []),
                        "" if row is self.rows[0] else _signed(self.effect(row.name, protocol)),
                    ]
                )
        facts = self.facts
        request = f"{facts['way']}-way {facts['shots']}-shot"
        title = f"{facts['dataset']}: {request}, {facts['episodes']} {facts['split']} episodes"
        notes = [
            "accuracy ± 95 % interval over episodes, in %"
            + ("; seeds: standard deviation" if several else ""),
            f"{first} − row: paired difference [95 % bootstrap interval], in points",
            f"episodes {facts['episode_hash']}, cache {facts['cache_fingerprint'][:16]}, "
            f"seeds {','.join(map(str, self.seeds))}, selection: {facts['selection']}",
        ]
        return Table(columns, rows, title, notes, block=len(self.rows))

    def csv(self) -> str:
        """For programs: a line per row and protocol, fractions with all their digits."""
        columns = ("row", "protocol", "accuracy", "interval95", "seeds", "seed_std")
        effects = ("effect", "effect_low", "effect_high")
        lines = []
        for protocol in self.protocols:
            for row in self.rows:
                score, seeds = row.estimate(protocol), row.seeds(protocol)
                values: list[float | int | str] = [score.mean, score.half, seeds.n, seeds.std]
                if row is self.rows[0]:
                    values += [""] * 3
                else:
                    effect = self.effect(row.name, protocol)
                    values += [effect.mean, effect.low, effect.high]
                lines.append([row.name, protocol, *map(str, values)])
        return Table((*columns, *effects), lines).csv()

    def save(self, folder: Path) -> None:
        """Write ``ablation.json``, ``ablation.csv`` and ``ablation.tex`` into ``folder``."""
        write_json(folder / "ablation.json", self.as_dict())
        for name, text in (("ablation.csv", self.csv()), ("ablation.tex", self.table().latex())):
            with replacing(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def together(results: Sequence[AblationResult]) -> AblationResult:
    """One result over several class splits: their episodes one after the other, row by row."""
    first = results[0]
    if len(results) == 1:
        return first
    rows = []
    for row in first.rows:
        same = [result[row.name] for result in results]
        accuracies = {p: np.concatenate([r.accuracies[p] for r in same], axis=1) for p in first.protocols}
        rows.append(Row(row.name, row.config, tuple(c for r in same for c in r.cells), accuracies))
    facts = {
        **first.facts,
        "episodes": sum(r.facts["episodes"] for r in results),
        "episode_hash": " ".join(r.facts["episode_hash"] for r in results),
        "class_splits": len(results),
    }
    return AblationResult(tuple(rows), first.seeds, first.episodes, facts, sum(r.trained for r in results))


def _signed(effect: Difference) -> str:
    return f"{100 * effect.mean:+.1f} [{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
