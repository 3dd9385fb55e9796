"""A head to look into: loaded from a run, with the features of the classes it is tested on.

Shapes: E episodes of a batch, S supports, Q queries, C classes (ways), T frames, D width; n episodes in all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipspm.errors import ClipspmError
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, check_frames, draw
from clipspm.train_heads.evaluation.leaks import guard_test_classes
from clipspm.train_heads.evaluation.predict import autocast, batch_size, evaluating, make_batch
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.evidence import Evidence
from clipspm.train_heads.resume import as_trained
from clipspm.train_heads.runs import Run

Floats = npt.NDArray[np.float64]
Change = Callable[[Episode], Episode]


@dataclass(frozen=True)
class Reading:
    """A batch of episodes as a head read it: its evidence, and the labels of the queries, [E, Q]."""

    head: Head
    episode: Episode
    evidence: Evidence
    labels: Tensor

    def logits(self, without: tuple[str, ...] = ()) -> Tensor:
        """Combine the evidence into logits [E, Q, C], with some pieces of it set to zero."""
        kept = {name: x * 0 if name in without else x for name, x in self.evidence.items()}
        return self.head.combine(self.episode, Evidence(kept, self.evidence.kept)).float()

    def right(self, logits: Tensor) -> Floats:
        """Return the share of queries that ``logits`` get right in each episode, [E]."""
        found: Floats = (logits.argmax(-1) == self.labels).double().mean(1).cpu().numpy()
        return found

    def margin(self, logits: Tensor) -> Floats:
        """Return the logit of the true class less the mean of the others, mean over queries, [E]."""
        truth = logits.gather(-1, self.labels.unsqueeze(-1)).squeeze(-1)
        others = (logits.sum(-1) - truth) / (logits.shape[-1] - 1)
        found: Floats = (truth - others).double().mean(1).cpu().numpy()
        return found


@dataclass(frozen=True)
class Subject:
    """A head in evaluation mode, and the features of the test classes.

    ``name``: what tables call it; ``config``: way, shots, precision, and whether frames are shuffled;
    ``frames``: per clip; ``bank``: the test split.
    """

    name: str
    config: TrainConfig
    head: Head
    data: Data
    bank: FeatureBank
    frames: int

    @classmethod
    def load(
        cls,
        run: Run,
        cache: str | Path | Data | None = None,
        *,
        name: str = "",
        device: str = "auto",
        allow_partial: bool = False,
    ) -> "Subject":
        """Load the weights that ``run`` selected and the cache it was trained on (or ``cache``).

        Raises :class:`ClipspmError` where weights or cache are gone, or test classes were trained on.
        """
        data = cache if isinstance(cache, Data) else None
        if not isinstance(cache, Data):
            data = as_trained(run, cache, allow_partial=allow_partial, device=device)
        assert data is not None
        found = cls.of(run.load_head(), run.config, data, name or run.path.name)
        guard_test_classes(run, found.bank)
        return found

    @classmethod
    def of(cls, head: Head, config: TrainConfig, data: Data, name: str) -> "Subject":
        """Take ``head`` as it is, for episodes and frames as ``config`` has them."""
        bank = data.bank("test", head.layers, shuffle_time=config.shuffle_time)
        frames = config.frames or min(8, data.spec.frames)
        check_frames(data.spec.frames, frames)
        return cls(name, config, head.to(data.device).eval(), data, bank, frames)

    def draw(
        self,
        number: int,
        *,
        way: int | None = None,
        shots: int | None = None,
        among: npt.NDArray[np.bool_] | None = None,
    ) -> Episodes:
        """Draw test episodes, as the run's unless said otherwise; ``among`` [N]: of these videos only."""
        config = self.config
        pool = self.bank.pool if among is None else self.bank.pool.part(among)
        way = min(way or config.way, len(pool.names))
        spec = EpisodeSpec(dataset=pool.dataset, split="test", way=way, shot=shots or config.shots)
        return draw(spec, pool, number)

    def read(self, episodes: Episodes, change: Change | None = None) -> Iterator[Reading]:
        """Score ``episodes`` a few at a time, each query as if it were alone; ``change`` them before.

        The block that reads must not keep gradients: use within :meth:`looking`.
        """
        episodes, head, bank = episodes.on(self.bank.pool), self.head, self.bank
        step = batch_size(episodes, self.frames, bank.text.shape[-1], "inductive", bank.device)
        for start in range(0, len(episodes), min(step, 64)):
            part = episodes[start : start + min(step, 64)]
            batch = make_batch(bank, part, self.frames, layers=head.layers)
            episode = batch.episode.batched()
            if change is not None:
                episode = change(episode)
            found = head.scores(episode)
            evidence = found if isinstance(found, Evidence) else Evidence(found)
            yield Reading(head, episode, evidence, batch.query_labels)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Set evaluation mode without gradients, at the run's precision."""
        with evaluating(self.head), autocast(self.bank.device, self.config.precision):
            yield

    def pieces(self) -> dict[str, tuple[str, ...]]:
        """Return the evidence of the head by kind: names before a ``/`` are one kind over several layers."""
        with self.looking():
            names = next(self.read(self.draw(1))).evidence
        kinds: dict[str, tuple[str, ...]] = {}
        for name in names:
            kind = name.partition("/")[0]
            kinds[kind] = (*kinds.get(kind, ()), name)
        return kinds

    def features(self, videos: npt.NDArray[np.int64], layer: str = "final") -> Tensor:
        """Return the frames of ``videos`` [N], rows of the test split, [N, T, D]."""
        parts = [self.bank.gather(videos[i : i + 256][None], self.frames, layer=layer)[0]
                 for i in range(0, len(videos), 256)]  # fmt: skip
        return torch.cat(parts)


def load_all(runs: Mapping[str, Run], cache: str | Path | None, **how: Any) -> list[Subject]:
    """Load ``runs`` by name, all with the cache of the first (or ``cache``).

    ``how``: further arguments of :meth:`Subject.load`. Raises :class:`ClipspmError` for one that was trained
    under other class splits than the first.
    """
    found: list[Subject] = []
    first = next(iter(runs.values()))
    for name, run in runs.items():
        if not found:
            found.append(Subject.load(run, cache, name=name, **how))
            continue
        if not run.imported and run.cache["class_splits"] != first.cache["class_splits"]:
            raise ClipspmError(f"{run.path} was trained under other class splits than {first.path}")
        found.append(Subject.load(run, found[0].data, name=name))
    return found


def stilled(episode: Episode) -> Episode:
    """Put each clip's mean frame in the place of all its frames, so that nothing moves."""

    def still(x: Tensor) -> Tensor:
        return x.mean(2, keepdim=True).expand_as(x).contiguous()

    return episode.mapped(still, still)


def of_queries(change: Callable[[Tensor], Tensor]) -> Change:
    """Return what changes the frames of the queries only, [E, Q, T, D]."""
    return lambda episode: episode.mapped(query=change)
