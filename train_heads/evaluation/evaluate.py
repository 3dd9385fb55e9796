"""Score a head on test episodes that are drawn once, saved and named by a hash."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import clipspm
from clipspm.cache.disk import Unreadable
from clipspm.cache.reader import open_cache
from clipspm.engines.allocator import keep_pages
from clipspm.errors import ClipspmError, UsageError
from clipspm.progress import Reporter, Say
from clipspm.train_heads.config import Precision
from clipspm.train_heads.episodes.bank import Banks, check_frames
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, draw
from clipspm.train_heads.episodes.files import check_claims
from clipspm.train_heads.episodes.pool import FeatureSource, Split
from clipspm.train_heads.episodes.random import digest
from clipspm.train_heads.evaluation.leaks import guard_labels, guard_test_classes
from clipspm.train_heads.evaluation.predict import autocast, evaluating, predict, recall_videos
from clipspm.train_heads.evaluation.result import EvalResult, save_predictions, saved_predictions
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.protocol import PROTOCOLS, Protocol
from clipspm.train_heads.request import resolve_device
from clipspm.train_heads.runs import Run, as_trained


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
    dirichlet: int = 0,
    sources: str = "",
    split: Split = "test",
    weights: str | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    batch: int | None = None,
    shuffle_time: bool | None = None,
    allow_partial: bool = False,
    banks: Banks | None = None,
    log: Say | None = None,
) -> EvalResult:
    """Score a run directory or a head on ``episodes`` drawn from ``split``.

    What is left open is taken from the run (``way``, ``shots``, ``frames``, ``precision``, and the cache it
    was trained on, under its class splits); a bare head needs ``cache`` and defaults to 5-way 1-shot. For a
    run, the episodes, the predictions and a part of ``results.json`` are written into its directory.
    ``dirichlet``, ``sources``: other kinds of episodes, see :class:`~.episodes.draw.EpisodeSpec`.
    ``batch``: episodes at a time (chosen by size otherwise; the episodes do not depend on it).
    ``allow_partial``: leave out what is missing or damaged in a cache that is opened here.
    """
    reporter = Reporter(log)
    keep_pages()
    run = target if isinstance(target, Run) else None if isinstance(target, Head) else Run.open(target)
    if run is not None and (cache is None or isinstance(cache, str | Path)):
        cache = as_trained(run, cache, (split,), allow_partial=allow_partial)
    elif cache is None:
        raise UsageError("evaluating a head needs a cache")
    elif isinstance(cache, str | Path):
        cache = open_cache(cache).require((split,), allow_partial=allow_partial)
    if isinstance(target, Head):
        head, chosen, config, weights_digest = target, None, None, None
    else:
        assert run is not None
        config, chosen = run.config, weights or run.which_weights()
        head = run.build_head()
        weights_digest = run.load_weights(head, chosen)["sha256"]
        head.eval()
    frames = frames or (config.frames if config else None) or min(8, cache.spec.frames)
    check_frames(cache.spec.frames, frames)
    shuffle = shuffle_time if shuffle_time is not None else bool(config and config.shuffle_time)
    found_device = resolve_device(device)
    layers = ("final", head.shallow_layer) if head.shallow_layer else ("final",)
    if run is not None:
        _check_widths(run, cache, layers)
    if banks is None or not banks.serve(cache, layers, found_device):
        banks = Banks(cache, layers, found_device)
    bank = banks.get(split, shuffle_time=shuffle)
    if run is not None and split == "test":
        guard_test_classes(run, bank)
    if isinstance(episodes, Episodes):
        if episodes.spec.dataset != cache.spec.dataset:
            raise UsageError(
                f"the episodes are of {episodes.spec.dataset}, {cache.path} holds {cache.spec.dataset}"
            )
        drawn = episodes.on(bank.pool)
        check_claims(drawn, bank.pool)
    else:
        spec = EpisodeSpec(
            dataset=cache.spec.dataset,
            split=split,
            way=way if way is not None else config.way if config else 5,
            shot=shots if shots is not None else config.shots if config else 1,
            queries=queries,
            seed=seed,
            dirichlet=dirichlet,
            sources=sources,
        )
        drawn = draw(spec, bank.pool, episodes)
    arithmetic: Precision = precision or (config.precision if config else "float32")
    head = head.to(found_device)
    predictions: dict[Protocol, npt.NDArray[np.int64]] = {}
    with evaluating(head), autocast(found_device, arithmetic):
        memory = recall_videos(head, bank, drawn, frames)
    for protocol in protocols:
        guard_labels(head, bank, drawn[:1], frames, protocol)
        with reporter.task(f"scoring, {protocol}", len(drawn), "episodes") as advance:
            predictions[protocol] = predict(
                head,
                bank,
                drawn,
                frames=frames,
                protocol=protocol,
                precision=arithmetic,
                batch=batch,
                advance=advance,
                memory=memory,
            )
    covered = cache.coverage(split)
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
        "dirichlet": drawn.spec.dirichlet,
        "sources": drawn.spec.sources,
        "frames": frames,
        "shuffle_time": shuffle,
        "precision": arithmetic,
        "device": str(found_device),
        "weights": chosen,
        "weights_sha256": weights_digest,
        **_selection(run, chosen),
        "cache_name": Path(cache.path).name,
        "cache_fingerprint": cache.spec.fingerprint,
        "coverage": {"expected": covered.expected, "found": covered.found},
        "head": config.head if config else type(head).__name__,
        "head_config": dict(config.head_config) if config else None,
        "version": clipspm.__version__,
        "torch": torch.__version__,
        "interval": "1.96 * std / sqrt(n) over episodes, which share clips and classes",
    }
    if run is not None:
        facts["unlike"] = _unlike(run, facts)
    result = EvalResult(drawn, predictions, facts)
    if run is not None:
        _write(run, result)
    return result


def _check_widths(run: Run, cache: FeatureSource, layers: Sequence[str]) -> None:
    """Refuse features of another width than ``run`` was built for; layers that are not cached are passed."""
    needed, found = {**run.shape.layer_dims, "final": run.shape.dim}, cache.spec.dims
    for layer in layers:
        if layer in needed and layer in found and needed[layer] != found[layer]:
            raise UsageError(
                f"{run.path} is for features of width {needed[layer]}, {cache.path} has {found[layer]} "
                f"(layer {layer}): give a cache of the same encoder"
            )


def _selection(run: Run | None, weights: str | None) -> dict[str, Any]:
    """The split that chose the weights, and the hash of the episodes it did so on."""
    if run is None or weights != run.which_weights():
        return {"selection": f"by hand ({weights})" if weights else "none", "selection_episodes": None}
    results = run.results()
    chosen_on = results.get("training", {}).get("val_episodes", {}).get("hash")
    return {"selection": results.get("selection", "none"), "selection_episodes": chosen_on}


def _unlike(run: Run, facts: dict[str, Any]) -> str:
    """Empty for an evaluation with the run's own weights, frames, arithmetic and features, else a suffix."""
    config = run.config
    own = {
        "weights": run.which_weights(),
        "frames": config.frames or facts["frames"],
        "shuffle_time": config.shuffle_time,
        "precision": config.precision,
        "cache_fingerprint": run.cache.get("fingerprint", facts["cache_fingerprint"]),
    }
    other = {key: facts[key] for key, value in own.items() if facts[key] != value}
    return f"-{digest('clipspm-evaluation-v1', other).hex()[:8]}" if other else ""


def _write(run: Run, result: EvalResult) -> None:
    """Episodes, predictions and a part of ``results.json``; another protocol of the same stays beside it.

    That of other weights does not, nor what is damaged. Refuses scores of weights that are not the run's any
    more: training ended meanwhile.
    """
    name, content, digest = result.name, result.as_dict(), result.facts["weights_sha256"]
    result.episodes.save(run.path / f"episodes-{result.episodes.hash}.npz")
    with run.editing() as results:
        if results.get("files", {}).get(f"{result.facts['weights']}.safetensors", digest) != digest:
            raise ClipspmError(f"training of {run.path} ended meanwhile: run the same command again")
        evaluations = results.setdefault("evaluations", {})
        before = evaluations.pop(name, {})
        predictions: dict[Protocol, npt.NDArray[np.int64]] = {}
        if before and before.get("weights_sha256", digest) == digest:
            with suppress(Unreadable):
                predictions = saved_predictions(run, name, result.episodes)[0]
        arrays = save_predictions(run, name, predictions | result.predictions, result.facts)
        protocols = {**before.get("protocols", {}), **content["protocols"]}
        kept = {k: before[k] for k in ("selection_bias",) if k in before}
        content["protocols"] = {p: protocols[p] for p in PROTOCOLS if p in arrays and p in protocols}
        evaluations[name] = {**content, **kept}
