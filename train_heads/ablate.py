"""What each part is worth: the full model beside the model without it, same seeds, same episodes.

A row of the table is a configuration; a cell is a row with one seed. Cells are run directories named after
what they depend on (configuration and cache), so that a finished one is never trained again, whichever
table asks for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

import clipspm
from clipspm.cache.errors import ClipspmError, UsageError
from clipspm.train_heads.bank import Banks
from clipspm.train_heads.comparison import AblationResult, Row
from clipspm.train_heads.config import DEFAULT_HEAD, TrainConfig, checked, load_recipe, near, resolve_config
from clipspm.train_heads.episodes import Episodes, EpisodeSpec, check_request, draw
from clipspm.train_heads.evaluate import PROTOCOLS, EvalResult, evaluate, load_evaluation
from clipspm.train_heads.heads.base import Protocol
from clipspm.train_heads.pool import FeatureSource, Pool, content_digest
from clipspm.train_heads.progress import Reporter, Say
from clipspm.train_heads.request import fit_to_cache, resolve_device
from clipspm.train_heads.runs import HeadShape, Run
from clipspm.train_heads.streams import digest
from clipspm.train_heads.train import train

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
    log: Say | None = None,
) -> AblationResult:
    """Train and score every row of :func:`ablation_rows` with every seed; write the tables into ``out_dir``.

    All cells are scored on the same ``episodes`` test episodes. Cells lie in ``out_dir/cells``; those that
    are finished are read, those that were interrupted go on. ``keep_weights`` False keeps only the
    predictions of finished cells, True the selected weights too. Raises :class:`UsageError` before any
    work if the cache cannot give what is asked.
    """
    reporter = Reporter(log)
    out = Path(out_dir)
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
    if banks is None or not banks.serve(cache, layers, device):
        banks = Banks(cache, layers, device)
    table, trained = [], 0
    selection = "none"
    for name, config in rows.items():
        found: list[EvalResult] = []
        cells = []
        for seed in seeds[:1] if name in untrained else seeds:
            cell = replace(config, seed=0 if name in untrained else seed)
            path = out / "cells" / cell_name(cell, cache)
            reporter.say(f"{name}, seed {seed}: {path.name}")
            result, new = _cell(cache, cell, path, drawn, protocols, banks, log, keep_weights)
            found.append(result)
            trained += new
            cells.append(path)
            selection = result.facts["selection"]
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
        "recipe": base.recipe,
        "selection": selection,
        "version": clipspm.__version__,
        "compared_with": table[0].name,
    }
    result_table = AblationResult(tuple(table), tuple(seeds), drawn, facts, trained)
    result_table.save(out)
    return result_table


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
    config: TrainConfig,
    path: Path,
    episodes: Episodes,
    protocols: Sequence[Protocol],
    banks: Banks,
    log: Say | None,
    keep_weights: bool,
) -> tuple[EvalResult, bool]:
    """The scores of one cell and whether it had to be trained."""
    new = not ((path / "config.json").exists() and Run.open(path).finished)
    if not new:
        try:
            known = load_evaluation(path, episodes.hash)
        except ClipspmError:
            known = None
        if known is not None and set(protocols) <= set(known.protocols):
            return known, False
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
