"""Score a head on test episodes that are drawn once, saved and named by a hash."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import clipspm
from clipspm.cache.errors import ClipspmError, UsageError
from clipspm.cache.reader import open_cache
from clipspm.train_heads.bank import Banks, FeatureBank, check_frames
from clipspm.train_heads.config import Precision
from clipspm.train_heads.episodes import Episodes, EpisodeSpec, draw
from clipspm.train_heads.heads.base import Head, Protocol
from clipspm.train_heads.pool import FeatureSource, Split
from clipspm.train_heads.progress import Reporter, Say
from clipspm.train_heads.request import resolve_device
from clipspm.train_heads.runs import Run, Weights, save_arrays
from clipspm.train_heads.scoring import accuracies, predict
from clipspm.train_heads.stats import Estimate, estimate
from clipspm.train_heads.tables import Table

PROTOCOLS: tuple[Protocol, ...] = ("inductive", "transductive")


@dataclass(frozen=True)
class EvalResult:
    """Predictions and accuracy of one head on n episodes.

    ``predictions``: by protocol, [n, Q], the class 0..C-1 chosen for each query. ``facts``: everything
    that identifies the numbers, as written to ``results.json``.
    """

    episodes: Episodes = field(repr=False)
    predictions: dict[Protocol, npt.NDArray[np.int64]] = field(repr=False)
    facts: dict[str, Any]

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols that were scored."""
        return tuple(self.predictions)

    def accuracies(self, protocol: Protocol = "inductive") -> npt.NDArray[np.float64]:
        """Accuracy of each episode, [n]: what paired comparisons are made of."""
        return accuracies(self.predictions[protocol], self.episodes)

    def estimate(self, protocol: Protocol = "inductive") -> Estimate:
        """Mean accuracy and the half width of its 95 % interval, 1.96 * std / sqrt(n)."""
        return estimate(self.accuracies(protocol))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``results.json`` and ``--json``."""
        scores = {p: _plain(self.estimate(p)) for p in self.protocols}
        return {**self.facts, "protocols": scores}

    def table(self) -> Table:
        """Accuracy in per cent with its 95 % interval, a row per protocol."""
        facts, scores = self.facts, {p: self.estimate(p) for p in self.protocols}
        rows = [(p, f"{100 * s.mean:.2f} ± {100 * s.half:.2f}") for p, s in scores.items()]
        request = f"{facts['way']}-way {facts['shots']}-shot"
        title = f"{facts['dataset']}: {request}, {facts['episodes']} {facts['split']} episodes"
        notes = (
            "accuracy ± 95 % interval over episodes, in %",
            f"episodes {self.name}, cache {facts['cache_fingerprint'][:16]}, selection: {facts['selection']}",
        )
        return Table((facts["head"], "accuracy"), rows, title, notes)

    @property
    def name(self) -> str:
        """What the files of this evaluation are named after: the hash of its episodes."""
        return self.episodes.hash


def _plain(score: Estimate) -> dict[str, float]:
    return {"accuracy": score.mean, "interval95": score.half}


def evaluate(
    target: str | Path | Run | Head,
    cache: FeatureSource | str | Path | None = None,
    *,
    episodes: int | Episodes = 10_000,
    way: int | None = None,
    shots: int | None = None,
    queries: int = 1,
    frames: int | None = None,
    protocols: Sequence[Protocol] = PROTOCOLS,
    seed: int = 0,
    split: Split = "test",
    weights: Weights | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    batch: int | None = None,
    shuffle_time: bool | None = None,
    banks: Banks | None = None,
    log: Say | None = None,
) -> EvalResult:
    """Score a run directory or a head on ``episodes`` drawn from ``split``.

    What is left open is taken from the run (``way``, ``shots``, ``frames``, ``precision``, and the cache it
    was trained on, under its class splits); a bare head needs ``cache`` and defaults to 5-way 1-shot. For a
    run, the episodes, the predictions and a part of ``results.json`` are written into its directory.
    ``batch``: episodes at a time (chosen by size otherwise; the episodes do not depend on it).
    """
    reporter = Reporter(log)
    run = target if isinstance(target, Run) else None if isinstance(target, Head) else Run.open(target)
    if run is not None and (cache is None or isinstance(cache, str | Path)):
        cache = as_trained(run, cache)
    elif cache is None:
        raise UsageError("evaluating a head needs a cache")
    elif isinstance(cache, str | Path):
        cache = open_cache(cache)
    if isinstance(target, Head):
        head, chosen, config = target, None, None
    else:
        assert run is not None
        config, chosen = run.config, weights or run.which_weights()
        head = run.load_head(chosen)
    frames = frames or (config.frames if config else None) or min(8, cache.spec.frames)
    check_frames(cache.spec.frames, frames)
    shuffle = shuffle_time if shuffle_time is not None else bool(config and config.shuffle_time)
    found_device = resolve_device(device)
    layers = ("final", head.shallow_layer) if head.shallow_layer else ("final",)
    if banks is None or not banks.serve(cache, layers, found_device):
        banks = Banks(cache, layers, found_device)
    bank = banks.get(split, shuffle_time=shuffle)
    if run is not None and split == "test":
        guard_test_classes(run, bank)
    if run is not None and bank.text.shape[-1] != run.shape.dim:
        raise UsageError(
            f"{run.path} is for features of width {run.shape.dim}, {cache.path} has {bank.text.shape[-1]}"
        )
    if isinstance(episodes, Episodes):
        drawn = episodes.on(bank.pool)
    else:
        spec = EpisodeSpec(
            dataset=cache.spec.dataset,
            split=split,
            way=way or (config.way if config else 5),
            shot=shots or (config.shots if config else 1),
            queries=queries,
            seed=seed,
        )
        if episodes < 1:
            raise UsageError(f"{episodes} episodes asked for; at least 1 is needed")
        drawn = draw(spec, bank.pool, episodes)
    arithmetic: Precision = precision or (config.precision if config else "float32")
    head = head.to(found_device)
    predictions: dict[Protocol, npt.NDArray[np.int64]] = {}
    for protocol in protocols:
        with reporter.task(f"{split} episodes, {protocol}", len(drawn)) as advance:
            predictions[protocol] = predict(
                head,
                bank,
                drawn,
                frames=frames,
                protocol=protocol,
                precision=arithmetic,
                batch=batch,
                advance=advance,
            )
    facts = {
        "dataset": cache.spec.dataset,
        "split": split,
        "episodes": len(drawn),
        "episode_hash": drawn.hash,
        "episode_hash_full": drawn.full_hash,
        "way": drawn.spec.way,
        "shots": drawn.spec.shot,
        "queries": drawn.spec.queries,
        "seed": drawn.spec.seed,
        "frames": frames,
        "shuffle_time": shuffle,
        "precision": arithmetic,
        "device": str(found_device),
        "weights": chosen,
        "selection": run.results().get("selection", "none") if run else "none",
        "cache_fingerprint": cache.spec.fingerprint,
        "head": config.head if config else type(head).__name__,
        "head_config": dict(config.head_config) if config else None,
        "version": clipspm.__version__,
        "torch": torch.__version__,
        "interval": "1.96 * std / sqrt(n) over episodes, which share clips and classes",
    }
    result = EvalResult(drawn, predictions, facts)
    if run is not None:
        _write(run, result)
    return result


def as_trained(run: Run, path: str | Path | None = None) -> FeatureSource:
    """The cache of ``run`` (or the one at ``path``), under the class splits that it was trained with.

    A cache of other classes keeps its own splits, and so does every cache where ``run`` was imported.
    """
    if run.imported and path is None:
        raise UsageError(f"{run.path} was imported and has no cache of its own: give one with --cache PATH")
    try:
        cache = open_cache(path or run.cache["path"])
    except ClipspmError as error:
        if path is not None:
            raise
        raise ClipspmError(f"{run.path} needs its cache (or another with --cache): {error}") from error
    splits = run.cache["class_splits"]
    other = cache.class_splits == splits or set(cache.class_names) != set(splits)
    return cache if other else cache.with_splits(splits)


def guard_test_classes(run: Run, bank: FeatureBank) -> None:
    """Refuse to test on classes that ``run`` trained on or selected its weights on."""
    if run.imported or bank.pool.dataset != run.cache["dataset"]:
        return
    seen = {name: split for name, split in run.cache["class_splits"].items() if split in ("train", "val")}
    leaked = [name for name in bank.pool.names if name in seen]
    if leaked:
        raise ClipspmError(
            f"leak: test class {leaked[0]!r} was in the {seen[leaked[0]]} split when {run.path} was trained"
        )


def _write(run: Run, result: EvalResult) -> None:
    """Episodes, predictions and a part of ``results.json``."""
    result.episodes.save(run.path / f"episodes-{result.name}.npz")
    arrays = {str(p): found.astype(np.int16) for p, found in result.predictions.items()}
    save_arrays(run.path / f"eval-{result.name}.npz", arrays)
    evaluations = {**run.results().get("evaluations", {}), result.name: result.as_dict()}
    run.update_results(evaluations=evaluations)


def load_evaluation(run: Run | str | Path, name: str | None = None) -> EvalResult:
    """An evaluation that a run holds, by the hash of its episodes (default: the newest)."""
    run = run if isinstance(run, Run) else Run.open(run)
    evaluations = run.results().get("evaluations", {})
    if not evaluations:
        raise ClipspmError(f"{run.path} holds no evaluation yet: run `clipspm eval {run.path}`")
    name = name or list(evaluations)[-1]
    if name not in evaluations:
        raise ClipspmError(f"{run.path} holds no evaluation {name}; it has {', '.join(evaluations)}")
    episodes = Episodes.load(run.path / f"episodes-{name}.npz")
    try:
        with np.load(run.path / f"eval-{name}.npz", allow_pickle=False) as file:
            predictions = {p: file[p].astype(np.int64) for p in PROTOCOLS if p in file}
    except (OSError, ValueError) as error:
        raise ClipspmError(f"cannot read {run.path / f'eval-{name}.npz'}: {error}") from error
    facts = {k: v for k, v in evaluations[name].items() if k != "protocols"}
    return EvalResult(episodes, predictions, facts)
