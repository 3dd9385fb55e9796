"""Score a head on test episodes that are drawn once, saved and named by a hash."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import clipspm
from clipspm.cache.disk import Unreadable
from clipspm.cache.reader import open_cache
from clipspm.cache.spec import FINAL
from clipspm.engines.allocator import keep_pages
from clipspm.errors import ClipspmError, UsageError
from clipspm.progress import Reporter, Say
from clipspm.train_heads.config import EvalConfig, Precision
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, check_frames, draw
from clipspm.train_heads.episodes.files import check_claims
from clipspm.train_heads.episodes.pool import FeatureSource, Split
from clipspm.train_heads.episodes.random import digest
from clipspm.train_heads.evaluation.leaks import guard_labels, guard_recall, guard_test_classes
from clipspm.train_heads.evaluation.predict import autocast, evaluating, recall_videos, scored
from clipspm.train_heads.evaluation.result import (
    EvalResult,
    Floats32,
    Stored,
    load_predictions,
    save_predictions,
)
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.protocol import PROTOCOLS, Protocol
from clipspm.train_heads.request import check_texts
from clipspm.train_heads.resume import as_trained
from clipspm.train_heads.runs import Run


@dataclass(frozen=True, kw_only=True)
class Scoring(EvalConfig):
    """How to score. None: as the run was trained, or for a bare head 5-way 1-shot in float32."""

    episodes: int | Episodes = 10_000  #: how many to draw, or episodes drawn before
    dirichlet: int = 0  #: see :class:`~.episodes.draw.EpisodeSpec`
    sources: str = ""  #: see :class:`~.episodes.draw.EpisodeSpec`
    split: Split = "test"
    weights: str | None = None  #: of the run: best, last, or a checkpoint's name
    frames: int | None = None  #: sampled from the cached ones
    precision: Precision | None = None
    shuffle_time: bool | None = None  #: randomise the order of each clip's frames
    batch: int | None = None  #: episodes at a time; by default chosen by size; does not change the numbers


@dataclass(frozen=True)
class Subject:
    """A ``head`` to score, in evaluation mode, and the ``run`` and ``weights`` that it was loaded from."""

    head: Head
    run: Run | None = None
    weights: str | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, target: str | Path | Run | Head, weights: str | None) -> "Subject":
        """Load ``weights`` of a run (None: those it selected); take a head as it is."""
        if isinstance(target, Head):
            return cls(target)
        run = target if isinstance(target, Run) else Run.open(target)
        head, weights = run.build_head(), weights or run.which_weights()
        facts = run.load_weights(head, weights)
        return cls(head.eval(), run, weights, facts["sha256"])

    def filled(self, asked: Scoring, data: Data) -> Scoring:
        """Return ``asked`` with its open fields filled in; refuse what ``data`` cannot give."""
        frames, run = asked.frames, self.run
        if run is None:
            frames = frames or min(8, data.spec.frames)
            own: dict[str, Any] = {"way": 5, "shots": 1, "precision": "float32", "shuffle_time": False}
        else:
            config = run.config
            frames = frames or config.frames or min(8, data.spec.frames)
            own = {name: getattr(config, name) for name in ("way", "shots", "precision", "shuffle_time")}
            _check_widths(run, data, self.head.layers)
        check_frames(data.spec.frames, frames)
        name = run.config.head if run is not None else type(self.head).__name__
        check_texts(data.spec, name, self.head.needs_text)
        return replace(
            asked,
            frames=frames,
            **{name: value for name, value in own.items() if getattr(asked, name) is None},
        )


def evaluate(
    target: str | Path | Run | Head,
    data: Data | FeatureSource | str | Path | None = None,
    *,
    device: str = "auto",
    allow_partial: bool = False,
    log: Say | None = None,
    **asked: Any,
) -> EvalResult:
    """Score a run directory or a head on episodes of the test classes.

    ``data``: by default the run's own cache, under the class splits it was trained with; a bare head needs
    one. ``asked``: fields of :class:`Scoring`. ``allow_partial``: leave out videos that are missing or
    damaged in a cache that is opened here, instead of refusing it. For a run, the episodes, the predictions
    and an entry of ``results.json`` are written into its directory.
    """
    keep_pages()
    scoring = Scoring(**asked)
    data = open_data(target, data, scoring.split, device=device, allow_partial=allow_partial)
    subject = Subject.of(target, scoring.weights)
    scoring = subject.filled(scoring, data)
    bank = data.bank(scoring.split, subject.head.layers, shuffle_time=bool(scoring.shuffle_time))
    if subject.run is not None and scoring.split == "test":
        guard_test_classes(subject.run, bank)
    drawn = episodes_of(scoring, data, bank)
    predictions, sure = score(subject.head.to(data.device), bank, drawn, scoring, Reporter(log))
    result = EvalResult(drawn, predictions, _facts(subject, data, scoring, drawn), sure)
    if subject.run is not None:
        _write(subject.run, result)
    return result


def open_data(
    target: str | Path | Run | Head,
    data: Data | FeatureSource | str | Path | None,
    split: Split = "test",
    *,
    device: str,
    allow_partial: bool,
) -> Data:
    """Return the data to score ``target`` on; a cache that is opened here has to be complete in ``split``."""
    if data is not None and not isinstance(data, str | Path):
        return Data.of(data, device)
    if not isinstance(target, Head):
        run = target if isinstance(target, Run) else Run.open(target)
        return as_trained(run, data, (split,), allow_partial=allow_partial, device=device)
    if data is None:
        raise UsageError("evaluating a head needs a cache")
    return Data(open_cache(data).require((split,), allow_partial=allow_partial), device)


def episodes_of(scoring: Scoring, data: Data, bank: FeatureBank) -> Episodes:
    """Draw the requested episodes, or check the given ones."""
    if isinstance(scoring.episodes, int):
        assert scoring.way is not None
        assert scoring.shots is not None
        spec = EpisodeSpec(
            dataset=data.spec.dataset,
            split=scoring.split,
            way=scoring.way,
            shot=scoring.shots,
            queries=scoring.queries,
            seed=scoring.seed,
            dirichlet=scoring.dirichlet,
            sources=scoring.sources,
        )
        return draw(spec, bank.pool, scoring.episodes)
    if scoring.episodes.spec.dataset != data.spec.dataset:
        raise UsageError(
            f"the episodes are of {scoring.episodes.spec.dataset}, but {data.path} holds {data.spec.dataset}"
        )
    drawn = scoring.episodes.on(bank.pool)
    check_claims(drawn, bank.pool)
    return drawn


def score(
    head: Head, bank: FeatureBank, episodes: Episodes, scoring: Scoring, reporter: Reporter
) -> tuple[dict[Protocol, npt.NDArray[np.int64]], dict[Protocol, Floats32]]:
    """Predict ``episodes``; refuse a head that sees query labels.

    Returns the class of every query and its probability, [n, Q] by protocol.
    """
    frames, precision = scoring.frames, scoring.precision
    assert frames is not None
    assert precision is not None
    with evaluating(head), autocast(bank.device, precision):
        known = recall_videos(head, bank, episodes, frames)
    predictions, confidences = {}, {}
    for protocol in scoring.protocols:
        guard_labels(head, bank, episodes[:1], frames, protocol)
        if known is not None:
            guard_recall(head, bank, episodes[:8], frames, protocol)
        with reporter.task(f"scoring, {protocol}", len(episodes), "episodes") as advance:
            logits = scored(
                head,
                bank,
                episodes,
                frames=frames,
                protocol=protocol,
                precision=precision,
                batch=scoring.batch,
                advance=advance,
                known=known,
            )
            best = [(batch.argmax(-1), batch.float().softmax(-1).amax(-1)) for batch in logits]
        predictions[protocol], confidences[protocol] = (
            np.concatenate([part.cpu().numpy() for part in parts]) for parts in zip(*best, strict=True)
        )
    return predictions, confidences


def _facts(subject: Subject, data: Data, scoring: Scoring, drawn: Episodes) -> dict[str, Any]:
    """Collect everything that identifies the numbers, as written to ``results.json``."""
    run, found, expected = subject.run, *data.coverage()[scoring.split]
    facts = {
        "dataset": data.spec.dataset,
        "split": scoring.split,
        "episodes": len(drawn),
        "episode_hash": drawn.hash,
        "episode_hash_full": drawn.full_hash,
        "way": drawn.spec.way,
        "shots": drawn.spec.shot,
        "queries": drawn.spec.queries,
        "seed": drawn.spec.seed,
        "dirichlet": drawn.spec.dirichlet,
        "sources": drawn.spec.sources,
        "frames": scoring.frames,
        "shuffle_time": scoring.shuffle_time,
        "precision": scoring.precision,
        "device": str(data.device),
        "weights": subject.weights,
        "weights_sha256": subject.sha256,
        **_selection(run, subject.weights),
        "cache_name": data.path.name,
        "cache_fingerprint": data.spec.fingerprint,
        "coverage": {"expected": expected, "found": found},
        "head": run.config.head if run else type(subject.head).__name__,
        "head_config": dict(run.config.head_config) if run else None,
        "version": clipspm.__version__,
        "torch": torch.__version__,
        "interval": "1.96 * std / sqrt(n) over episodes, which share clips and classes",
    }
    if run is not None:
        facts["unlike"] = _name_suffix(run, facts)
    return facts


def _check_widths(run: Run, data: Data, layers: Sequence[str]) -> None:
    """Refuse features of another width than ``run`` was built for; skip layers that are not cached."""
    needed, found = {**run.shape.layer_dims, FINAL: run.shape.dim}, data.spec.dims
    for layer in layers:
        if layer in needed and layer in found and needed[layer] != found[layer]:
            raise UsageError(
                f"{run.path} is for features of width {needed[layer]}, {data.path} has {found[layer]} "
                f"(layer {layer}): give a cache of the same encoder"
            )


def _selection(run: Run | None, weights: str | None) -> dict[str, Any]:
    """Return how the weights were selected, and the hash of the episodes that selected them."""
    if run is None or weights != run.which_weights():
        return {"selection": f"by hand ({weights})" if weights else "none", "selection_episodes": None}
    results = run.results()
    chosen_on = results.get("training", {}).get("val_episodes", {}).get("hash")
    return {"selection": results.get("selection", "none"), "selection_episodes": chosen_on}


def _name_suffix(run: Run, facts: dict[str, Any]) -> str:
    """Return a suffix for the evaluation's name if it departs from the run's own settings, else nothing."""
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
    """Write the episodes, the predictions and the entry of ``results.json``.

    Other protocols of an earlier evaluation of the same weights are kept, unless they are damaged. Raises
    :class:`ClipspmError` if training replaced the weights during the evaluation.
    """
    name, content, digest = result.name, result.as_dict(), result.facts["weights_sha256"]
    result.episodes.save(run.path / f"episodes-{result.episodes.hash}.npz")
    with run.editing() as results:
        if results.get("files", {}).get(f"{result.facts['weights']}.safetensors", digest) != digest:
            raise ClipspmError(
                f"training of {run.path} ended during the evaluation: run the same command again"
            )
        evaluations = results.setdefault("evaluations", {})
        before = evaluations.pop(name, {})
        own = Stored(result.predictions, result.confidences, result.facts)
        if before and before.get("weights_sha256", digest) == digest:
            with suppress(Unreadable):
                old = load_predictions(run, name, result.episodes)
                own = Stored(old.predictions | own.predictions, old.confidences | own.confidences, own.facts)
        arrays = save_predictions(run, name, own)
        protocols = {**before.get("protocols", {}), **content["protocols"]}
        kept = {k: before[k] for k in ("selection_bias",) if k in before}
        content["protocols"] = {p: protocols[p] for p in PROTOCOLS if p in arrays and p in protocols}
        evaluations[name] = {**content, **kept}
