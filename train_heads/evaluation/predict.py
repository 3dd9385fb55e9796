"""Run episodes through a head in batches; shared by training, validation and evaluation.

Shapes: E episodes of a batch, S supports, Q queries, C ways, T frames, D width; n episodes in all.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

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
from clipspm.train_heads.evaluation.stats import Floats, accuracies
from clipspm.train_heads.heads.base import Head, Scorer
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.pool.fits import fit_factor
from clipspm.train_heads.heads.protocol import Protocol

#: largest size in bytes of the features to recall; what a head keeps of them is 17 times as large
_MOST_RECALLED = 9e7
_TUNE_LIMIT = 64  # with more combinations than this, search one buffer at a time
_CLEARLY = 3.0  # standard errors by which a candidate is clearly worse


@dataclass(frozen=True)
class Batch:
    """Features of E episodes; ``query_labels`` [E, Q] and ``base`` (in training) are for losses only."""

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
    """Gather ``layers`` of ``episodes``; with ``generator`` (training) add jitter, views and base classes."""
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
    """Return the context in which a head computes at ``precision``."""
    dtype = {"float32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


@contextmanager
def evaluating(head: Head) -> Iterator[None]:
    """Set evaluation mode without gradients; restore the head's mode and checks on exit."""
    was, check = head.training, head.check
    head.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        head.train(was)
        head.check = check


def batch_size(
    episodes: Episodes, frames: int, dim: int, protocol: Protocol, device: torch.device, *, wide: bool = True
) -> int:
    """Return how many episodes to score at a time to keep activations within about 0.5 GB (6 GB on a GPU).

    ``wide``: the head has blocks that every query passes together with the supports.
    """
    supports, queries, way = episodes.support.shape[1], episodes.query.shape[1], episodes.spec.way
    copies = queries if protocol == "inductive" else 1
    if wide:
        tokens = (supports + queries + copies * (way + supports + 2)) * (frames + 1)
        each = tokens * (4 * 2048 + 8 * dim) * 4
    else:
        each = (supports + queries) * frames * (dim + supports) * 32
    budget = 6e9 if device.type == "cuda" else 5e8
    return int(min(max(budget // each, 1), 512))


def predict(head: Head, bank: FeatureBank, episodes: Episodes, **how: Any) -> npt.NDArray[np.int64]:
    """Return the class (0..C-1) with the highest logit for every query, [n, Q]; ``how``: :func:`scored`'s."""
    found = [logits.argmax(-1).cpu().numpy() for logits in scored(head, bank, episodes, **how)]
    return np.concatenate(found) if found else np.empty((0, episodes.query.shape[1]), dtype=np.int64)


def scored(
    head: Head,
    bank: FeatureBank,
    episodes: Episodes,
    *,
    frames: int,
    protocol: Protocol,
    precision: Precision = "float32",
    batch: int | None = None,
    advance: Advance | None = None,
    known: "RecalledVideos | None" = None,
) -> Iterator[Tensor]:
    """Yield the logits of all queries, a few episodes at a time, [E, Q, C].

    ``known``: the result of :func:`recall_videos` on these episodes, if they are scored several times with
    the same weights.
    """
    episodes = episodes.on(bank.pool)
    check = head.check
    with evaluating(head), autocast(bank.device, precision):
        known = known or recall_videos(head, bank, episodes, frames)
        wide, layers = (known.scorer.wide, known.scorer.layers) if known else (head.trainable, head.layers)
        dim = bank.text.shape[-1]
        step = batch or batch_size(episodes, frames, dim, protocol, bank.device, wide=wide)
        for start in range(0, len(episodes), step):
            head.check = check and start == 0  # every batch has the same shapes and labels
            part = episodes[start : start + step]
            episode = make_batch(bank, part, frames, layers=layers, protocol=protocol).episode
            logits = head.run(episode).logits if known is None else known.logits(episode, part)
            if not bool(torch.isfinite(logits).all()):
                raise ClipspmError(
                    f"the head's logits are not finite in episodes {start}..{start + len(part) - 1} "
                    f"({precision}); try float32"
                )
            yield logits
            if advance is not None:
                advance(len(part), "")


@dataclass(frozen=True)
class RecalledVideos:
    """What a head precomputed; ``place`` [N]: the row in it of each pool video, or -1."""

    scorer: Scorer
    place: Tensor

    def logits(self, episode: Episode, episodes: Episodes) -> Tensor:
        """Return the logits [E, Q, C] of ``episode``, which was gathered for ``episodes``."""
        rows = (
            self.place[torch.from_numpy(np.ascontiguousarray(videos)).to(self.place.device)]
            for videos in (episodes.support, episodes.query)
        )
        return self.scorer(episode.batched(), *rows)


def recall_videos(head: Head, bank: FeatureBank, episodes: Episodes, frames: int) -> RecalledVideos | None:
    """Let ``head`` precompute what it needs of each video of ``episodes``, if that is less work.

    None if most videos occur only once, if there are too many, or if the head has no faster way to score
    them.
    """
    count = np.union1d(episodes.support, episodes.query).size
    if 2 * count > episodes.support.size + episodes.query.size:
        return None
    if 2 * count * frames * bank.text.shape[-1] * 4 > _MOST_RECALLED:
        return None
    return precomputed(head, bank, episodes, frames)


def precomputed(head: Head, bank: FeatureBank, episodes: Episodes, frames: int) -> RecalledVideos | None:
    """Let ``head`` precompute what it needs of each video of ``episodes``; None if it has no use for that.

    The videos come in an order that tells nothing of their class.
    """
    if type(head).recall is Head.recall:
        return None
    videos = np.union1d(episodes.support, episodes.query)
    np.random.default_rng(0).shuffle(videos)
    text = bank.text[torch.from_numpy(bank.pool.labels[videos]).to(bank.device)]
    scorer = head.recall(
        {layer: bank.gather(videos[None], frames, layer=layer)[0] for layer in head.layers}, text
    )
    if scorer is None:
        return None
    place = torch.full((len(bank.pool.ids),), -1, device=bank.device)
    place[torch.from_numpy(videos).to(bank.device)] = torch.arange(videos.size, device=bank.device)
    return RecalledVideos(scorer, place)


def tune(
    head: Head,
    bank: FeatureBank,
    episodes: Episodes,
    *,
    frames: int,
    protocol: Protocol,
    precision: Precision = "float32",
) -> dict[str, float]:
    """Set the head's tunable buffers to the values that score best on validation ``episodes``; return them.

    Tries all combinations if there are few, else one buffer after the other. A tie keeps the current value.
    Then each :attr:`Head.reluctant` buffer takes the first of its candidates that is not clearly worse: by
    more than three standard errors of the paired difference. These are over episodes, which share their
    classes, and say too little of other classes.
    """
    candidates = head.tunable
    if not candidates:
        return {}
    buffers = {name: head.get_buffer(name) for name in candidates}
    current = {name: float(buffer) for name, buffer in buffers.items()}

    def score(values: dict[str, float]) -> Floats:
        for name, value in values.items():
            buffers[name].fill_(value)
        found = predict(head, bank, episodes, frames=frames, protocol=protocol, precision=precision)
        return accuracies(found, episodes)

    best, best_score = dict(current), score(current)
    together = int(np.prod([len(options) for options in candidates.values()])) <= _TUNE_LIMIT
    rounds = [list(candidates)] if together else [[name] for name in candidates]
    for names in rounds:
        start = dict(best)
        for values in product(*(candidates[name] for name in names)):
            trial = {**start, **dict(zip(names, map(float, values), strict=True))}
            trial_score = score(trial)
            if trial_score.mean() > best_score.mean():
                best, best_score = trial, trial_score
    for name in head.reluctant:
        for value in candidates[name]:
            trial = {**best, name: float(value)}
            worse = best_score - (best_score if trial == best else score(trial))
            if worse.mean() <= _CLEARLY * worse.std() / np.sqrt(len(worse)):
                best = trial
                break
    for name, value in best.items():
        buffers[name].fill_(value)
    return best


def fit_temperature(head: Head, bank: FeatureBank, episodes: Episodes, **how: Any) -> None:
    """Set the buffer ``temperature`` of ``head``, if it has one, to what fits validation ``episodes`` best.

    It divides the logits, so it changes probabilities and no choice of a class.
    """
    buffer = dict(head.named_buffers()).get("temperature")
    if buffer is None:
        return
    logits = torch.cat(list(scored(head, bank, episodes, **how))).float() * buffer
    labels = torch.tensor(episodes.query_labels, device=logits.device)
    factor = fit_factor(logits.flatten(0, 1).unsqueeze(0), labels.flatten().unsqueeze(0), None, 1.0)
    if float(factor) > 0:
        buffer.fill_(1 / float(factor))
