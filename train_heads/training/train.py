"""Train a head on the training classes and keep the weights that are best on the validation classes.

The test split is never opened here.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from clipspm.cache.disk import DiskFull, reading
from clipspm.cache.home import runs_dir
from clipspm.engines.allocator import keep_pages
from clipspm.errors import UsageError
from clipspm.progress import Reporter, Say
from clipspm.settings import typed
from clipspm.train_heads.config import Service, TrainConfig
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.pool import FeatureSource, Split
from clipspm.train_heads.episodes.random import derive_seed, digest
from clipspm.train_heads.evaluation.calibrate import calibrate
from clipspm.train_heads.evaluation.leaks import guard_classes
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.places import cache_title
from clipspm.train_heads.request import check_texts, fit_to_cache
from clipspm.train_heads.runs import CONFIG, METRICS, RESULTS, HeadShape, Run, training_lock
from clipspm.train_heads.training.curves import JsonLines, Several, loggers
from clipspm.train_heads.training.loop import Trainer, TrainResult
from clipspm.train_heads.training.selection import Selector, make_selector


def train(
    data: Data | FeatureSource,
    config: TrainConfig | None,
    run_dir: str | Path,
    *,
    resume: bool = False,
    log: Say | None = None,
    log_to: Sequence[Service] = (),
    keep_checkpoints: int = 0,
) -> TrainResult:
    """Train ``config.head`` on ``data`` and write a run directory.

    ``resume``: go on from the last checkpoint in ``run_dir`` (start anew if there is none); on the same
    machine the weights are then bit for bit those of an uninterrupted run. ``config`` None: that of the run
    to resume. ``keep_checkpoints``: keep the weights of so many validations, evenly over the training, for
    :func:`~.evaluation.selection_bias.selection_bias`. ``log_to``: where curves go besides the run. ``log``:
    receives the lines otherwise shown on
    standard error. Raises :class:`UsageError` before any work if the cache cannot give what is asked.
    """
    reporter = Reporter(log)
    keep_pages()
    if config is None:
        if not resume:
            raise UsageError("training needs a configuration, unless it resumes a run")
        config = Run.open(run_dir).config
    if resume and os.path.lexists(Path(run_dir, CONFIG)):
        Run.open(run_dir).build_head()  # report an invalid head with the name of its file
    data = Data.of(data, config.device)
    device = data.device
    config = fit_to_cache(config, data.pools, data.spec, reporter.say)
    assert config.frames is not None
    shape = HeadShape.of(data.spec.dims, config.frames)
    with _keep_random_state(device):
        torch.manual_seed(derive_seed("init", config.seed))
        head = shape.build(config)
    check_texts(data.spec, config.head, head.needs_text)
    with training_lock(Path(run_dir)):
        run = _open_run(data.described(), config, shape, Path(run_dir), resume)
        if run.finished:
            reporter.say(f"{run.path} is finished already")
            if keep_checkpoints and not run.checkpoints():
                raise UsageError(f"{run.path} is finished and kept no checkpoints: name another --run-dir")
            return _finished(run, device)
        logger = Several([JsonLines(run.path / METRICS), *loggers(log_to, run.path, config.as_dict())])
        trainer = None
        try:
            with data.closed("test"), _keep_random_state(device):
                bank, selector = _banks(data, config, head, reporter.say)
                calibrate(head.to(device), bank, way=config.way, frames=config.frames)
                trainer = Trainer(
                    bank, selector, run, head, logger, reporter, keep_checkpoints=keep_checkpoints
                )
                return trainer.run_to_end()
        except (KeyboardInterrupt, DiskFull) as stop:
            done = trainer.saved if trainer else 0
            kept = f"{done} of {config.episodes} episodes are" if done else "what was trained before is"
            again = f"go on with: clipspm train-heads --resume --run-dir {shlex.quote(str(run.path))}"
            if isinstance(stop, DiskFull):
                raise stop.but(f"{again} ({kept} saved)" if done else again) from stop
            stop.add_note(f"{kept} saved; {again}")
            raise
        finally:
            logger.close()


def untrained(data: Data, config: TrainConfig) -> Run:
    """Make the run of a head without a training step, or find the one that was made before.

    What the head measures on training classes and chooses on validation classes is in it.
    """
    config = fit_to_cache(replace(config, episodes=0), data.pools, data.spec, lambda line: None)
    what = digest(config.identity, data.spec.fingerprint, data.content).hex()[:8]
    path = runs_dir() / f"{cache_title(data)}-{config.head.replace(':', '.')}-untrained-{what}"
    train(data, config, path, resume=True)
    return Run.open(path)


def _banks(data: Data, config: TrainConfig, head: Head, say: Say) -> tuple[FeatureBank, Selector]:
    """Return the features to train on, and what selects the weights."""

    def bank(split: Split) -> FeatureBank:
        found = data.bank(split, head.layers, shuffle_time=config.shuffle_time)
        guard_classes(data.cache.class_splits, found)
        return found

    classes = len(data.pools["val"].names)
    why = f"{classes or 'no'} validation class{'es' * (not classes)}"
    return make_selector(config, bank("train"), bank("val") if classes >= 2 else None, head, why, say)


def _open_run(
    made_for: dict[str, Any], config: TrainConfig, shape: HeadShape, path: Path, resume: bool
) -> Run:
    """Create a run, or with ``resume`` open the one in ``path``; refuse one that has another request."""
    if not (resume and os.path.lexists(path / CONFIG)):
        return Run.create(path, config, shape, made_for)
    run = Run.open(path)
    if run.imported:
        raise UsageError(f"{path} was imported, not trained here: name another --run-dir")
    if run.cache["fingerprint"] != made_for["fingerprint"]:
        raise UsageError(
            f"{path} was trained on the cache {run.cache['path']} ({run.cache['fingerprint'][:16]}), "
            f"not on {made_for['path']} ({made_for['fingerprint'][:16]})"
        )
    if run.cache["content"] != made_for["content"]:
        raise UsageError(
            f"{path} was trained when {made_for['path']} held other videos or splits: start a new run"
        )
    if run.config.identity != config.identity:
        changed = run.config.differences(config)
        raise UsageError(f"{path} cannot be resumed with other settings (there / here): {'; '.join(changed)}")
    return run


def _finished(run: Run, device: torch.device) -> TrainResult:
    """Return the result of a run that has ended before."""
    with reading(run.path / RESULTS, "does not say how training ended"):
        facts = run.results()["training"]
        kinds = get_type_hints(TrainResult)
        names = ("selection", "val_accuracy", "best_step", "steps", "tuned", "seconds")
        known: dict[str, Any] = typed({name: facts[name] for name in names}, kinds)
    return TrainResult(run_dir=run.path, config=run.config, head=run.load_head(device=device), **known)


@contextmanager
def _keep_random_state(device: torch.device) -> Iterator[None]:
    """Restore the caller's random state on exit."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
