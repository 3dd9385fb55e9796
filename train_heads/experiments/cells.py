"""A cell of an ablation: a configuration with its seed, in a run directory that is named after both."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clipspm.cache.reader import open_cache
from clipspm.errors import ClipspmError
from clipspm.progress import Say
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.episodes.pool import SPLITS, content_digest
from clipspm.train_heads.episodes.random import digest
from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.evaluation.result import EvalResult, load_evaluation
from clipspm.train_heads.heads.protocol import Protocol
from clipspm.train_heads.runs import CONFIG, RESULTS, Run
from clipspm.train_heads.training.train import train

#: states of a cell: not begun, interrupted in training, trained but not scored, done
STATES = ("to train", "to finish", "to score", "finished")


@dataclass(frozen=True)
class Cell:
    """A configuration with its seed, and the run directory it belongs in."""

    config: TrainConfig
    path: Path

    def state(self, episodes: Episodes, protocols: Sequence[Protocol]) -> str:
        """Return one of :data:`STATES`."""
        if self.scored(episodes, protocols):
            return "finished"
        if not os.path.lexists(self.path / CONFIG):
            return "to train"
        if not Run.open(self.path).finished:
            return "to finish"
        return "to score" if list(self.path.glob("*.safetensors")) else "to train"

    def scored(self, episodes: Episodes, protocols: Sequence[Protocol]) -> EvalResult | None:
        """Return the stored evaluation of a finished cell on these episodes, or None."""
        if not (os.path.lexists(self.path / CONFIG) and Run.open(self.path).finished):
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
    device: str = "auto"
    threads: int | None = None

    @classmethod
    def of(
        cls,
        data: Data,
        episodes: Episodes,
        out: Path,
        protocols: Sequence[Protocol],
        keep_weights: bool,
    ) -> "CellTask":
        """Make the task of scoring cells of ``data`` on ``episodes``, which are written into ``out``."""
        file = out.absolute() / f"episodes-{episodes.hash}.npz"
        episodes.save(file)
        return cls(
            cache=data.path.resolve(),
            class_splits=dict(data.cache.class_splits),
            content=data.content,
            episodes=file,
            protocols=tuple(protocols),
            keep_weights=keep_weights,
        )

    @contextmanager
    def open(self, device: str | None = None) -> Iterator[Callable[[Iterable[Cell]], Iterator[Path]]]:
        """Read the cache once; yield a function that turns cells into their finished run directories."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        cache = open_cache(self.cache).with_splits(self.class_splits)
        cache = cache.require(SPLITS, allow_partial=content_digest(cache) != self.content)
        if content_digest(cache) != self.content:
            raise ClipspmError(f"{self.cache} holds other videos here than where the ablation was started")
        data = Data(cache, device or self.device)
        episodes = Episodes.load(self.episodes)

        def work(cells: Iterable[Cell]) -> Iterator[Path]:
            for cell in cells:
                if device is not None:
                    cell = replace(cell, config=replace(cell.config, device=device))
                score_cell(data, cell, episodes, self.protocols, _silent, self.keep_weights)
                yield cell.path

        yield work


def _silent(line: str) -> None:
    """Report nothing: the process that starts the workers does."""


def cell_name(config: TrainConfig, data: Data) -> str:
    """Return the directory of a cell: a hash of the resolved configuration and what the cache holds."""
    what = (config.identity, data.spec.fingerprint, data.content)
    return digest("clipspm-cell-v1", *what).hex()[:20]


def score_cell(
    data: Data,
    cell: Cell,
    episodes: Episodes,
    protocols: Sequence[Protocol],
    log: Say | None,
    keep_weights: bool,
) -> tuple[EvalResult, bool]:
    """Return the scores of a cell, and whether it was trained; finished work is read, the rest is done."""
    known = cell.scored(episodes, protocols)
    if known is not None:
        return known, False
    config, path = cell.config, cell.path
    new = not (os.path.lexists(path / CONFIG) and Run.open(path).finished)
    if new or not list(path.glob("*.safetensors")):
        if not new:  # finished, but its weights were not kept
            (path / RESULTS).unlink(missing_ok=True)
        train(data, config, path, resume=True, log=log)
        new = True
    result = evaluate(path, data, episodes=episodes, protocols=protocols, log=log)
    run = Run.open(path)
    run.drop_state()
    spare = ["last"] if (path / "best.safetensors").exists() else []
    run.drop(*(spare if keep_weights else ["best", "last"]))
    return result, new
