"""Measure what each part contributes: the full model and variants on the same seeds and episodes.

A row of the table is a configuration; a cell is a row with one seed. Cells are run directories named after
what they depend on (configuration and cache), so that a finished one is never trained again, whichever table
asks for it.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clipspm
from clipspm.cache.lock import alone
from clipspm.devices import resolve_device
from clipspm.engines import EngineConfig, make_engine
from clipspm.errors import ClipspmError, UsageError
from clipspm.progress import Reporter, Say
from clipspm.tables import Table
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, check_request, draw
from clipspm.train_heads.episodes.pool import FeatureSource
from clipspm.train_heads.evaluation.result import EvalResult
from clipspm.train_heads.experiments.ablation_table import AblationResult, Row, ShotsResult
from clipspm.train_heads.experiments.cells import STATES, Cell, CellTask, cell_name, score_cell
from clipspm.train_heads.experiments.rows import ablation_rows
from clipspm.train_heads.heads.protocol import PROTOCOLS, Protocol
from clipspm.train_heads.request import fit_to_cache
from clipspm.train_heads.runs import HeadShape


def ablate(
    data: Data | FeatureSource,
    base: TrainConfig,
    *,
    out_dir: str | Path,
    log: Say | None = None,
    **asked: Any,
) -> AblationResult:
    """Train and score every row with every seed; write the tables into ``out_dir``.

    ``asked``: further arguments of :func:`plan_ablation`. All cells are scored on the same test episodes.
    They lie in ``out_dir/cells``; finished ones are read, interrupted ones go on. Raises :class:`UsageError`
    before any work if the cache cannot give what is asked.
    """
    plan = plan_ablation(data, base, out_dir=out_dir, log=log, **asked)
    with _ablation_lock(plan.out):
        result = plan.run(log=log)
        ShotsResult((result,)).save(plan.out)
    return result


def ablate_shots(
    data: Data | FeatureSource,
    base: TrainConfig,
    *,
    shots: Sequence[int],
    out_dir: str | Path,
    log: Say | None = None,
    **asked: Any,
) -> ShotsResult:
    """Do :func:`ablate` at several numbers of ``shots``, all checked before any work, in one table."""
    plans = plan_shots(data, base, shots=shots, out_dir=out_dir, log=log, **asked)
    with _ablation_lock(plans[0].out):
        result = ShotsResult(tuple(plan.run(log=log) for plan in plans))
        result.save(plans[0].out)
    return result


def _ablation_lock(out: Path) -> AbstractContextManager[str]:
    """Lock ``out`` for writing cells and tables; refuse and name the process that has it already."""
    lock, holder = out / ".ablation.lock", out / ".ablation.json"
    return alone(lock, holder, f"the ablation in {out} is being done", ", or name another --out")


def plan_shots(
    data: Data | FeatureSource, base: TrainConfig, *, shots: Sequence[int], **asked: Any
) -> "tuple[Plan, ...]":
    """Do :func:`plan_ablation` for each number of ``shots``."""
    if not shots or len(set(shots)) != len(shots):
        raise UsageError(f"shots are {list(shots)}; give at least one, and each only once")
    data = Data.of(data, base.device)
    return tuple(plan_ablation(data, replace(base, shots=count), **asked) for count in shots)


def plan_ablation(
    data: Data | FeatureSource,
    base: TrainConfig,
    *,
    out_dir: str | Path,
    drops: Sequence[str] = (),
    grid: bool = False,
    heads: Sequence[str] = (),
    extra: Mapping[str, TrainConfig] | None = None,
    seeds: Sequence[int] = (0,),
    episodes: int = 10_000,
    queries: int = 1,
    protocols: Sequence[Protocol] = PROTOCOLS,
    episode_seed: int = 0,
    keep_weights: bool = True,
    engine: EngineConfig | None = None,
    log: Say | None = None,
) -> "Plan":
    """Plan an ablation of the rows of :func:`ablation_rows`; nothing is trained or written.

    ``keep_weights`` False keeps only the predictions of finished cells, True the selected weights too.
    ``engine``: train cells elsewhere (Slurm, Ray; they must see the same files) or several at a time (one per
    entry of its ``devices``, which may name one device more than once), with the same results up to rounding.
    Raises :class:`UsageError` for whatever cannot be met, so that every plan can be run.
    """
    out = Path(out_dir).absolute()
    _check_writable(out)
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds are {list(seeds)}; give at least one, and each only once")
    rows = ablation_rows(base, drops=drops, grid=grid, heads=heads, extra=extra)
    data = Data.of(data, base.device)
    pool = data.pools["test"]
    check_request(pool, way=base.way, shot=base.shots, queries=queries)
    rows = _fit_rows(rows, data, Reporter(log))
    spec = EpisodeSpec(
        dataset=data.spec.dataset,
        split="test",
        way=base.way,
        shot=base.shots,
        queries=queries,
        seed=episode_seed,
    )
    drawn = draw(spec, pool, episodes)
    untrained = _untrained(data, rows)
    for name in (engine.devices if engine else ()) or (base.device,):
        resolve_device(name)
    plan = Plan(
        data=data,
        base=base,
        rows=rows,
        untrained=untrained,
        cells={
            name: _cells(config, (0,) if name in untrained else seeds, data, out)
            for name, config in rows.items()
        },
        seeds=tuple(seeds),
        episodes=drawn,
        protocols=tuple(protocols),
        engine=engine,
        keep_weights=keep_weights,
        out=out,
    )
    if plan.spread_out and plan.todo():
        assert engine is not None
        make_engine(engine)  # refuse one whose package is missing
    return plan


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An ablation that was checked: its ``rows``, and by row the ``cells``, one per seed.

    ``untrained``: rows whose head has nothing to train, with one cell for all seeds. ``episodes``: what every
    cell is scored on.
    """

    data: Data
    base: TrainConfig
    rows: dict[str, TrainConfig]
    untrained: frozenset[str]
    cells: dict[str, tuple[Cell, ...]]
    seeds: tuple[int, ...]
    episodes: Episodes
    protocols: tuple[Protocol, ...]
    engine: EngineConfig | None
    keep_weights: bool
    out: Path

    @property
    def spread_out(self) -> bool:
        """Whether an engine trains the cells, not this process."""
        return self.engine is not None and (self.engine.name != "local" or len(self.engine.devices) > 1)

    def todo(self) -> list[Cell]:
        """Return the cells that are not finished, each once (rows may share cells)."""
        every = {cell.path: cell for cells in self.cells.values() for cell in cells}
        return [cell for cell in every.values() if not cell.scored(self.episodes, self.protocols)]

    def run(self, *, log: Say | None = None) -> AblationResult:
        """Train and score what is not finished; return all results."""
        reporter, trained = Reporter(log), 0
        if self.spread_out:
            trained = self._train_on_engine(reporter)
        table = []
        for name, config in self.rows.items():
            found: list[EvalResult] = []
            for cell in self.cells[name]:
                reporter.say(f"{name}, {self.base.shots}-shot, seed {cell.config.seed}")
                result, new = score_cell(
                    self.data, cell, self.episodes, self.protocols, log, self.keep_weights
                )
                found.append(result)
                trained += new
            paths = tuple(cell.path for cell in self.cells[name])
            accuracies = {p: np.stack([r.accuracies(p) for r in found]) for p in self.protocols}
            table.append(
                Row(name, config, paths, accuracies, name not in self.untrained, result.facts["selection"])
            )
        return AblationResult(
            tuple(table), self.seeds, self.episodes, self._facts(table[0].selection), trained
        )

    def _train_on_engine(self, reporter: Reporter) -> int:
        """Let the engine train and score what is not finished; return the number of cells."""
        engine, todo = self.engine, self.todo()
        assert engine is not None
        if not todo:
            return 0
        task = CellTask.of(self.data, self.episodes, self.out, self.protocols, self.keep_weights)
        task = replace(task, device=self.base.device)
        if len(engine.devices) > 1:  # they share the cores of this machine
            task = replace(task, threads=max(1, torch.get_num_threads() // len(engine.devices)))
        trained = 0
        for path in make_engine(engine).map(task, todo):
            trained += 1
            reporter.say(f"{path.name} is done, {trained} of {len(todo)}")
        return trained

    def _facts(self, selection: str) -> dict[str, Any]:
        data, base, spec = self.data, self.base, self.episodes.spec
        return {
            "dataset": data.spec.dataset,
            "split": "test",
            "way": base.way,
            "shots": base.shots,
            "queries": spec.queries,
            "episodes": len(self.episodes),
            "episode_hash": self.episodes.hash,
            "episode_hash_full": self.episodes.full_hash,
            "cache_name": data.path.name,
            "cache_fingerprint": data.spec.fingerprint,
            "coverage": data.coverage(),
            "recipe": base.recipe,
            "selection": selection,
            "version": clipspm.__version__,
            "compared_with": next(iter(self.rows)),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return each row with its cells and the :attr:`Cell.state` of each, as plain values."""
        rows = [
            {
                "name": name,
                "head": config.head,
                "seeds": 0 if name in self.untrained else len(self.seeds),
                "cells": [
                    {
                        "name": c.path.name,
                        "seed": c.config.seed,
                        "state": c.state(self.episodes, self.protocols),
                    }
                    for c in self.cells[name]
                ],
            }
            for name, config in self.rows.items()
        ]
        return {"shots": self.base.shots, "rows": rows}


def describe_plans(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return what ``ablate --dry-run --json`` prints. ``cells``: number per state, shared ones once."""
    first, tables = plans[0], [plan.as_dict() for plan in plans]
    states = {c["name"]: c["state"] for table in tables for row in table["rows"] for c in row["cells"]}
    return {
        "dry_run": True,
        "cache": str(first.data.path),
        "dataset": first.data.spec.dataset,
        "way": first.base.way,
        "shots": [plan.base.shots for plan in plans],
        "seeds": list(first.seeds),
        "episodes": len(first.episodes),
        "engine": first.engine.name if first.engine else "local",
        "out": str(first.out),
        "cells": {state: list(states.values()).count(state) for state in STATES},
        "tables": tables,
    }


def plans_table(plans: Sequence[Plan]) -> Table:
    """Return :func:`describe_plans` as a table: the number of cells of each row in each state."""
    facts, rows = describe_plans(plans), []
    for table in facts["tables"]:
        rows.append([f"{table['shots']}-shot", *[""] * len(STATES)])
        for row in table["rows"]:
            counts = [sum(cell["state"] == state for cell in row["cells"]) for state in STATES]
            rows.append([row["name"], *(str(count) if count else "" for count in counts)])
    shots = "/".join(map(str, facts["shots"]))
    total = ", ".join(f"{count} {state}" for state, count in facts["cells"].items() if count)
    notes = [
        f"cells: {total}; seeds {','.join(map(str, facts['seeds']))} (one where there is nothing to train)",
        f"cache: {facts['cache']}",
        f"tables: {facts['out']}/ablation.json, .csv, .tex",
        "nothing was trained or written",
    ]
    title = f"{facts['dataset']}: {facts['way']}-way {shots}-shot, {facts['episodes']} test episodes"
    return Table(["", *STATES], rows, title, notes, block=1 + len(plans[0].rows))


def _check_writable(path: Path) -> None:
    """Refuse a folder that cannot be made or written into."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ClipspmError(f"cannot write to {place}: choose another --out, or set CLIPSPM_HOME")


def _fit_rows(rows: Mapping[str, TrainConfig], data: Data, reporter: Reporter) -> dict[str, TrainConfig]:
    """Fit every row to the cache; report what several rows have in common once."""
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            reporter.say(line)

    return {name: fit_to_cache(config, data.pools, data.spec, say_once) for name, config in rows.items()}


def _cells(config: TrainConfig, seeds: Sequence[int], data: Data, out: Path) -> tuple[Cell, ...]:
    """Return the cells of a row, one per seed."""
    seeded = (replace(config, seed=seed) for seed in seeds)
    return tuple(Cell(cell, out / "cells" / cell_name(cell, data)) for cell in seeded)


def _untrained(data: Data, rows: Mapping[str, TrainConfig]) -> frozenset[str]:
    """Return the rows whose head has nothing to train: one seed stands for all."""
    untrained = set()
    for name, config in rows.items():
        assert config.frames is not None
        if not HeadShape.of(data.spec.dims, config.frames).build(config).trainable:
            untrained.add(name)
    return frozenset(untrained)
