"""What each part is worth: the full model beside the model without it, same seeds, same episodes.

A row of the table is a configuration; a cell is a row with one seed. Cells are run directories named after
what they depend on (configuration and cache), so that a finished one is never trained again, whichever
table asks for it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clipspm
from clipspm.cache.reader import open_cache
from clipspm.engines import EngineConfig, make_engine
from clipspm.errors import ClipspmError, UsageError
from clipspm.progress import Reporter, Say
from clipspm.settings import near
from clipspm.train_heads.config import DEFAULT_HEAD, TrainConfig, checked, load_recipe, resolve_config
from clipspm.train_heads.episodes.bank import Banks
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, check_request, draw
from clipspm.train_heads.episodes.pool import SPLITS, FeatureSource, Pool, content_digest
from clipspm.train_heads.episodes.random import digest
from clipspm.train_heads.evaluation.evaluate import PROTOCOLS, EvalResult, evaluate, load_evaluation
from clipspm.train_heads.experiments.ablation_table import AblationResult, Row
from clipspm.train_heads.heads.protocol import Protocol
from clipspm.train_heads.request import fit_to_cache, resolve_device
from clipspm.train_heads.runs import HeadShape, Run
from clipspm.train_heads.training.train import train

MODULES = ("hsmr", "spm", "padm")
FULL = "full"


def parse_drop(text: str) -> tuple[str, ...]:
    """``padm+spm`` -> ``("spm", "padm")``, in the order of the model; unknown names are an error."""
    parts = [part.strip().lower() for part in text.split("+")]
    for part in parts:
        if part not in MODULES:
            raise UsageError(
                f"cannot drop {part!r}{near(part, MODULES)}; join several with +, as in padm+spm"
            )
    return tuple(name for name in MODULES if name in parts)


def ablation_rows(
    base: TrainConfig,
    *,
    drops: Sequence[str] = (),
    grid: bool = False,
    heads: Sequence[str] = (),
    extra: Mapping[str, TrainConfig] | None = None,
) -> dict[str, TrainConfig]:
    """The rows by name: ``base`` as ``full``, one per drop (all eight with ``grid``) and head, ``extra``.

    Rows for other heads are trained as ``base`` is, with what its recipe says of that head.
    """
    rows = {FULL: base}
    wanted = [parse_drop(drop) for drop in drops]
    if grid:
        combinations = product((False, True), repeat=len(MODULES))
        wanted += [tuple(m for m, out in zip(MODULES, flags, strict=True) if out) for flags in combinations]
    if wanted and base.head != DEFAULT_HEAD:
        raise UsageError(f"--drop and --grid are about {DEFAULT_HEAD}; this is {base.head}")
    for parts in dict.fromkeys(wanted):
        already_off = [part for part in parts if base.head_config.get(part) is False]
        if already_off:
            raise UsageError(f"cannot drop {already_off[0]}: the configuration has it off already")
        if parts:
            rows["without " + "+".join(parts)] = base.with_head(**dict.fromkeys(parts, False))
    for head in heads:
        own = checked(load_recipe(base.recipe).get("heads", {}).get(head, {}).get("train", {}), base.recipe)
        settings = resolve_config(recipe=base.recipe, preset=base.preset, overrides={"head": head})
        rows[head] = replace(base, head=head, head_config=settings.head_config, preset=settings.preset, **own)
    return {**rows, **(extra or {})}


def ablate(
    cache: FeatureSource,
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
    banks: Banks | None = None,
    engine: EngineConfig | None = None,
    log: Say | None = None,
) -> AblationResult:
    """Train and score every row of :func:`ablation_rows` with every seed; write the tables into ``out_dir``.

    All cells are scored on the same ``episodes`` test episodes. Cells lie in ``out_dir/cells``; those that
    are finished are read, those that were interrupted go on. ``keep_weights`` False keeps only the
    predictions of finished cells, True the selected weights too. ``engine``: train cells elsewhere (Slurm,
    Ray; they must see the same files) or several at a time (one per entry of its ``devices``, which may name
    one device more than once), with the same results up to rounding. Raises :class:`UsageError` before any
    work if the cache cannot give what is asked.
    """
    reporter = Reporter(log)
    out = Path(out_dir).absolute()
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds are {list(seeds)}; at least one is needed, and each once")
    rows = ablation_rows(base, drops=drops, grid=grid, heads=heads, extra=extra)
    if len(rows) < 2:
        raise UsageError("nothing to compare: name a --drop, or --grid")
    pool = Pool.from_cache(cache, "test")
    check_request(pool, way=base.way, shot=base.shots, queries=queries)
    said: set[str] = set()

    def once(line: str) -> None:
        if line not in said:
            said.add(line)
            reporter.say(line)

    rows = {name: fit_to_cache(config, cache, once) for name, config in rows.items()}
    spec = EpisodeSpec(
        dataset=cache.spec.dataset,
        split="test",
        way=base.way,
        shot=base.shots,
        queries=queries,
        seed=episode_seed,
    )
    drawn = draw(spec, pool, episodes)
    untrained, layers = _needs(cache, rows)
    device = resolve_device(base.device)
    for name in engine.devices if engine else ():
        resolve_device(name)
    if banks is None or not banks.serve(cache, layers, device):
        banks = Banks(cache, layers, device)
    planned: dict[str, list[Cell]] = {}
    for name, config in rows.items():
        seeded = [replace(config, seed=0)] if name in untrained else [replace(config, seed=s) for s in seeds]
        planned[name] = [Cell(cell, out / "cells" / cell_name(cell, cache)) for cell in seeded]
    trained = 0
    if engine is not None and (engine.name != "local" or len(engine.devices) > 1):
        task = CellTask.of(cache, drawn, out, protocols, keep_weights, layers)
        if len(engine.devices) > 1:  # they share the cores of this machine
            task = replace(task, threads=max(1, torch.get_num_threads() // len(engine.devices)))
        every = {cell.path: cell for cells in planned.values() for cell in cells}  # rows may share cells
        todo = [cell for cell in every.values() if not cell.scored(drawn, protocols)]
        for path in make_engine(engine).map(task, todo) if todo else ():
            trained += 1
            reporter.say(f"{path.name} is done, {trained} of {len(todo)}")
    table = []
    selection = "none"
    for name, config in rows.items():
        found: list[EvalResult] = []
        for cell in planned[name]:
            reporter.say(f"{name}, seed {cell.config.seed}: {cell.path.name}")
            result, new = _cell(cache, cell, drawn, protocols, banks, log, keep_weights)
            found.append(result)
            trained += new
            selection = result.facts["selection"]
        cells = [cell.path for cell in planned[name]]
        repeat = len(seeds) // len(found)
        accuracies = {p: np.stack([r.accuracies(p) for r in found] * repeat) for p in protocols}
        table.append(Row(name, config, tuple(cells), accuracies))
    facts = {
        "dataset": cache.spec.dataset,
        "split": "test",
        "way": base.way,
        "shots": base.shots,
        "queries": queries,
        "episodes": len(drawn),
        "episode_hash": drawn.hash,
        "cache_fingerprint": cache.spec.fingerprint,
        "coverage": {s: (cache.coverage(s).found, cache.coverage(s).expected) for s in SPLITS},
        "recipe": base.recipe,
        "selection": selection,
        "version": clipspm.__version__,
        "compared_with": table[0].name,
    }
    result_table = AblationResult(tuple(table), tuple(seeds), drawn, facts, trained)
    result_table.save(out)
    return result_table


@dataclass(frozen=True)
class Cell:
    """A configuration with its seed, and the run directory it belongs in."""

    config: TrainConfig
    path: Path

    def scored(self, episodes: Episodes, protocols: Sequence[Protocol]) -> EvalResult | None:
        """What a finished cell says of these episodes, if it was asked before."""
        if not ((self.path / "config.json").exists() and Run.open(self.path).finished):
            return None
        try:
            known = load_evaluation(self.path, episodes.hash)
        except ClipspmError:
            return None
        return known if set(protocols) <= set(known.protocols) else None


@dataclass(frozen=True, kw_only=True)
class CellTask:
    """Trains and scores cells in a worker process that sees the same files."""

    cache: Path
    class_splits: dict[str, Any]
    content: str
    episodes: Path
    protocols: tuple[Protocol, ...]
    keep_weights: bool
    layers: tuple[str, ...]
    threads: int | None = None

    @classmethod
    def of(
        cls,
        cache: FeatureSource,
        episodes: Episodes,
        out: Path,
        protocols: Sequence[Protocol],
        keep_weights: bool,
        layers: set[str],
    ) -> "CellTask":
        """The task of scoring cells of ``cache`` on ``episodes``, which are written into ``out``."""
        file = out.absolute() / f"episodes-{episodes.hash}.npz"
        episodes.save(file)
        return cls(
            cache=Path(cache.path).resolve(),
            class_splits=dict(cache.class_splits),
            content=content_digest(cache),
            episodes=file,
            protocols=tuple(protocols),
            keep_weights=keep_weights,
            layers=tuple(sorted(layers)),
        )

    @contextmanager
    def open(self, device: str | None = None) -> Iterator[Callable[[Iterable[Cell]], Iterator[Path]]]:
        """Read the cache once; yields what turns cells into their finished run directories."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        cache = open_cache(self.cache).with_splits(self.class_splits)
        cache = cache.require(SPLITS, allow_partial=content_digest(cache) != self.content)
        if content_digest(cache) != self.content:
            raise ClipspmError(f"{self.cache} holds other videos here than where the ablation was started")
        banks = Banks(cache, self.layers, resolve_device(device or "auto"))
        episodes = Episodes.load(self.episodes)

        def work(cells: Iterable[Cell]) -> Iterator[Path]:
            for cell in cells:
                if device is not None:
                    cell = replace(cell, config=replace(cell.config, device=device))
                _cell(cache, cell, episodes, self.protocols, banks, _silent, self.keep_weights)
                yield cell.path

        yield work


def _silent(line: str) -> None:
    """Workers say nothing: the process that maps them does."""


def cell_name(config: TrainConfig, cache: FeatureSource) -> str:
    """Directory of a cell: a hash over the resolved configuration and what the cache holds."""
    what = (config.identity, cache.spec.fingerprint, content_digest(cache))
    return digest("clipspm-cell-v1", *what).hex()[:20]


def _needs(cache: FeatureSource, rows: Mapping[str, TrainConfig]) -> tuple[set[str], set[str]]:
    """Rows whose head has nothing to train (one seed stands for all), and the layers that the rows read."""
    untrained, layers = set(), {"final"}
    for name, config in rows.items():
        assert config.frames is not None
        head = HeadShape.of(cache, config.frames).build(config)
        if not head.trainable:
            untrained.add(name)
        if head.shallow_layer:
            layers.add(head.shallow_layer)
    return untrained, layers


def _cell(
    cache: FeatureSource,
    cell: Cell,
    episodes: Episodes,
    protocols: Sequence[Protocol],
    banks: Banks,
    log: Say | None,
    keep_weights: bool,
) -> tuple[EvalResult, bool]:
    """The scores of one cell and whether it had to be trained."""
    known = cell.scored(episodes, protocols)
    if known is not None:
        return known, False
    config, path = cell.config, cell.path
    new = not ((path / "config.json").exists() and Run.open(path).finished)
    if new or not list(path.glob("*.safetensors")):
        _forget(path, finished=not new)
        train(cache, config, path, resume=True, log=log, banks=banks)
        new = True
    result = evaluate(
        path, cache, episodes=episodes, protocols=protocols, device=config.device, banks=banks, log=log
    )
    run = Run.open(path)
    run.drop_state()
    spare = ["last"] if (path / "best.safetensors").exists() else []
    for which in spare if keep_weights else ["best", "last"]:
        (path / f"{which}.safetensors").unlink(missing_ok=True)
    return result, new


def _forget(path: Path, *, finished: bool) -> None:
    """A finished cell whose weights were not kept has to be trained again: drop what says it is finished."""
    if finished:
        (path / "results.json").unlink(missing_ok=True)
