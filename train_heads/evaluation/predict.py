"""Episodes through a head, batch by batch: shared by training, validation and evaluation.

Shapes: E episodes of a batch, S supports, Q queries, C ways, T frames, D width; n episodes in all.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipspm.cache.spec import FINAL
from clipspm.errors import ClipspmError
from clipspm.progress import Advance
from clipspm.train_heads.config import Precision
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.evaluation.stats import accuracies
from clipspm.train_heads.heads.base import Head, Scorer
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.protocol import Protocol

_MOST_RECALLED = 4.5e7  # bytes of features of the videos that a head may recall; it keeps 35 times as much
_TUNE_LIMIT = 64  # more combinations than this are searched one setting at a time


@dataclass(frozen=True)
class Batch:
    """Gathered features of E episodes, and apart from them what only losses may see.

    ``query_labels`` [E, Q]; ``base``: in training.
    """

    episode: Episode
    query_labels: Tensor
    base: BaseClasses | None = None


def make_batch(
    bank: FeatureBank,
    episodes: Episodes,
    frames: int,
    generator: torch.Generator | None = None,
    *,
    layers: Sequence[str] = (FINAL,),
    protocol: Protocol = "inductive",
) -> Batch:
    """Gather ``layers`` of ``episodes``; ``generator`` (training) brings jitter, views and base classes."""
    episodes = episodes.on(bank.pool)
    device = bank.device
    support = bank.sample(episodes.support, frames, generator)
    query = bank.sample(episodes.query, frames, generator)
    base = None
    if generator is not None:
        base = BaseClasses(bank.text, bank.labels[support.videos], bank.labels[query.videos])
    episode = Episode(
        support={layer: bank.take(support, layer) for layer in layers},
        query={layer: bank.take(query, layer) for layer in layers},
        support_labels=torch.tensor(episodes.support_labels, device=device),
        text=bank.text[torch.from_numpy(episodes.classes).to(device)],
        protocol=protocol,
    )
    return Batch(episode, torch.tensor(episodes.query_labels, device=device), base)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a head computes at ``precision``."""
    dtype = {"float32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


@contextmanager
def evaluating(head: Head) -> Iterator[None]:
    """Evaluation mode without gradients; the mode and checks found are restored."""
    was, check = head.training, head.check
    head.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        head.train(was)
        head.check = check


def batch_size(episodes: Episodes, frames: int, dim: int, protocol: Protocol, device: torch.device) -> int:
    """Episodes scored at a time so that activations stay within about 0.5 GB (6 GB on a GPU)."""
    supports, queries, way = episodes.support.shape[1], episodes.query.shape[1], episodes.spec.way
    copies = queries if protocol == "inductive" else 1
    tokens = (supports + queries + copies * (way + supports + 2)) * (frames + 1)
    each = tokens * (4 * 2048 + 8 * dim) * 4
    budget = 6e9 if device.type == "cuda" else 5e8
    return int(min(max(budget // each, 1), 512))


def predict(
    head: Head,
    bank: FeatureBank,
    episodes: Episodes,
    *,
    frames: int,
    protocol: Protocol,
    precision: Precision = "float32",
    batch: int | None = None,
    advance: Advance | None = None,
    known: "Known | None" = None,
) -> npt.NDArray[np.int64]:
    """The class (0..C-1) with the highest logit for every query, [n, Q].

    ``known``: of :func:`recall_videos`, if these or other episodes were scored with the same weights before.
    """
    step = batch or batch_size(episodes, frames, bank.text.shape[-1], protocol, bank.device)
    episodes = episodes.on(bank.pool)
    found = []
    check = head.check
    with evaluating(head), autocast(bank.device, precision):
        known = known or recall_videos(head, bank, episodes, frames)
        for start in range(0, len(episodes), step):
            head.check = check and start == 0  # shapes and labels are alike in every batch
            part = episodes[start : start + step]
            episode = make_batch(bank, part, frames, layers=head.layers, protocol=protocol).episode
            logits = head.run(episode).logits if known is None else known.logits(episode, part)
            if not bool(torch.isfinite(logits).all()):
                raise ClipspmError(
                    f"the head's logits are not finite in episodes {start}..{start + len(part) - 1} "
                    f"({precision}); try float32"
                )
            found.append(logits.argmax(-1).cpu().numpy())
            if advance is not None:
                advance(len(part), "")
    return np.concatenate(found) if found else np.empty((0, episodes.query.shape[1]), dtype=np.int64)


@dataclass(frozen=True)
class Known:
    """What a head recalls of videos; ``supports`` and ``queries`` [N]: where in it each of the pool's is."""

    scorer: Scorer
    supports: Tensor
    queries: Tensor

    def logits(self, episode: Episode, episodes: Episodes) -> Tensor:
        """Logits [E, Q, C] of ``episode``, which was gathered for ``episodes``."""
        rows = (
            place[torch.from_numpy(np.ascontiguousarray(videos)).to(place.device)]
            for place, videos in ((self.supports, episodes.support), (self.queries, episodes.query))
        )
        return self.scorer(episode.batched(), *rows)


def recall_videos(head: Head, bank: FeatureBank, episodes: Episodes, frames: int) -> Known | None:
    """Let ``head`` see each video of ``episodes`` once, if most are in several and the head gains by it.

    Of queries it sees features only, nothing of their class.
    """
    supports, queries = np.unique(episodes.support), np.unique(episodes.query)
    if 2 * np.union1d(supports, queries).size > episodes.support.size + episodes.query.size:
        return None
    if (supports.size + queries.size) * frames * bank.text.shape[-1] * 4 > _MOST_RECALLED:
        return None
    text = bank.text[torch.from_numpy(bank.pool.labels[supports]).to(bank.device)]
    seen = (bank.gather(videos[None], frames)[0] for videos in (supports, queries))
    scorer = head.recall(next(seen), text, next(seen))
    if scorer is None:
        return None

    def places(videos: npt.NDArray[np.int64]) -> Tensor:
        place = torch.full((len(bank.pool.ids),), -1, device=bank.device)
        place[torch.from_numpy(videos).to(bank.device)] = torch.arange(videos.size, device=bank.device)
        return place

    return Known(scorer, places(supports), places(queries))


def tune(
    head: Head,
    bank: FeatureBank,
    episodes: Episodes,
    *,
    frames: int,
    protocol: Protocol,
    precision: Precision = "float32",
) -> dict[str, float]:
    """Set the head's tunable buffers to what scores best on ``episodes`` (validation); returns the choice.

    All combinations when there are few, else one buffer after the other. The value a buffer has is kept
    unless another is strictly better.
    """
    candidates = head.tunable
    if not candidates:
        return {}
    buffers = {name: head.get_buffer(name) for name in candidates}
    current = {name: float(buffer) for name, buffer in buffers.items()}

    def score(values: dict[str, float]) -> float:
        for name, value in values.items():
            buffers[name].fill_(value)
        found = predict(head, bank, episodes, frames=frames, protocol=protocol, precision=precision)
        return float(accuracies(found, episodes).mean())

    best, best_score = dict(current), score(current)
    together = int(np.prod([len(options) for options in candidates.values()])) <= _TUNE_LIMIT
    rounds = [list(candidates)] if together else [[name] for name in candidates]
    for names in rounds:
        start = dict(best)
        for values in product(*(candidates[name] for name in names)):
            trial = {**start, **dict(zip(names, map(float, values), strict=True))}
            trial_score = score(trial)
            if trial_score > best_score:
                best, best_score = trial, trial_score
    for name, value in best.items():
        buffers[name].fill_(value)
    return best
