"""Rows of configurations scored on the same episodes, with paired differences: the result of an ablation."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipspm.train_heads.atomic import replacing, write_json
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes import Episodes
from clipspm.train_heads.heads.base import Protocol
from clipspm.train_heads.stats import (
    Difference,
    Estimate,
    Spread,
    estimate,
    paired,
    paired_over_seeds,
    spread,
)
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
        """Accuracy in per cent with its 95 % interval; effect = the first row minus this one, paired."""
        first = self.rows[0].name
        columns = [""]
        for protocol in self.protocols:
            columns += [protocol, *(["seeds"] if len(self.seeds) > 1 else []), f"{first} − row"]
        rows = []
        for row in self.rows:
            cells = [row.name]
            for protocol in self.protocols:
                score = row.estimate(protocol)
                cells.append(f"{100 * score.mean:.1f} ± {100 * score.half:.1f}")
                if len(self.seeds) > 1:
                    cells.append(f"± {100 * row.seeds(protocol).std:.1f}")
                cells.append("" if row is self.rows[0] else _signed(self.effect(row.name, protocol)))
            rows.append(cells)
        facts = self.facts
        request = f"{facts['way']}-way {facts['shots']}-shot"
        title = f"{facts['dataset']}: {request}, {facts['episodes']} {facts['split']} episodes"
        notes = [
            "accuracy ± 95 % interval over episodes, in %",
            f"{first} − row: paired difference [95 % bootstrap interval], in points",
            f"episodes {facts['episode_hash']}, cache {facts['cache_fingerprint'][:16]}, "
            f"seeds {','.join(map(str, self.seeds))}, selection: {facts['selection']}",
        ]
        return Table(columns, rows, title, notes)

    def save(self, folder: Path) -> None:
        """Write ``ablation.json``, ``ablation.csv`` and ``ablation.tex`` into ``folder``."""
        write_json(folder / "ablation.json", self.as_dict())
        table = self.table()
        for name, text in (("ablation.csv", table.csv()), ("ablation.tex", table.latex())):
            with replacing(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _signed(effect: Difference) -> str:
    return f"{100 * effect.mean:+.1f} [{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
