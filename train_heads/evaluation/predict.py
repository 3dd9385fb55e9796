"""Episodes through a head, batch by batch: shared by training, validation and evaluation.

Shapes: E episodes of a batch, S supports, Q queries, C ways, T frames, D width; n episodes in all.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipspm.errors import ClipspmError
from clipspm.progress import Advance
from clipspm.train_heads.config import Precision
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.evaluation.stats import accuracies
from clipspm.train_heads.heads.base import BaseClasses, Head, HeadOutput
from clipspm.train_heads.heads.clipspm.recall import Recalled
from clipspm.train_heads.heads.protocol import Protocol

_RECALL_LIMIT = 1.5e9  # bytes of what is known of videos before they are scored
_TUNE_LIMIT = 64  # more combinations than this are searched one setting at a time


@dataclass(frozen=True)
class EpisodeBatch:
    """Gathered features of E episodes, ready for a head."""

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    text: Tensor
    support_shallow: Tensor | None
    query_shallow: Tensor | None
    base: BaseClasses | None
    recalled: dict[str, Recalled] | None = None

    def through(self, head: Head, protocol: Protocol, *, training: bool = False) -> HeadOutput:
        """Run ``head``; only training passes on query labels and base classes."""
        output: HeadOutput = head(
            support=self.support,
            support_labels=self.support_labels,
            query=self.query,
            text=self.text,
            protocol=protocol,
            query_labels=self.query_labels if training else None,
            base=self.base if training else None,
            support_shallow=self.support_shallow,
            query_shallow=self.query_shallow,
            **({} if self.recalled is None else self.recalled),
        )
        return output


def make_batch(
    bank: FeatureBank,
    episodes: Episodes,
    frames: int,
    generator: torch.Generator | None = None,
    shallow_layer: str | None = None,
) -> EpisodeBatch:
    """Gather ``episodes`` from ``bank``; ``generator`` (training) brings jitter, views and base classes."""
    episodes = episodes.on(bank.pool)
    device = bank.device
    support = bank.sample(episodes.support, frames, generator)
    query = bank.sample(episodes.query, frames, generator)
    base = None
    if generator is not None:
        base = BaseClasses(bank.text, bank.labels[support.videos], bank.labels[query.videos])
    return EpisodeBatch(
        support=bank.take(support),
        support_labels=torch.tensor(episodes.support_labels, device=device),
        query=bank.take(query),
        query_labels=torch.tensor(episodes.query_labels, device=device),
        text=bank.text[torch.from_numpy(episodes.classes).to(device)],
        support_shallow=bank.take(support, shallow_layer) if shallow_layer else None,
        query_shallow=bank.take(query, shallow_layer) if shallow_layer else None,
        base=base,
    )


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
    memory: "Memory | None" = None,
) -> npt.NDArray[np.int64]:
    """The class (0..C-1) with the highest logit for every query, [n, Q].

    ``memory``: of :func:`recall_videos`, if these or other episodes were scored with the same weights before.
    """
    step = batch or batch_size(episodes, frames, bank.text.shape[-1], protocol, bank.device)
    episodes = episodes.on(bank.pool)
    found = []
    check = head.check
    with evaluating(head), autocast(bank.device, precision):
        memory = memory or recall_videos(head, bank, episodes, frames)
        for start in range(0, len(episodes), step):
            head.check = check and start == 0  # shapes and labels are alike in every batch
            part = episodes[start : start + step]
            gathered = make_batch(bank, part, frames, None, head.shallow_layer)
            if memory is not None:
                gathered = memory.added_to(gathered, part)
            logits = gathered.through(head, protocol).logits
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
class Memory:
    """What a head recalls of the videos that some episodes need; ``place`` [N]: where in it a video is."""

    support: Recalled
    query: Recalled
    place: Tensor

    def added_to(self, batch: EpisodeBatch, episodes: Episodes) -> EpisodeBatch:
        """``batch`` of ``episodes`` with what is known of its videos."""
        support, query = (
            self.place[torch.from_numpy(np.ascontiguousarray(v)).to(self.place.device)]
            for v in (episodes.support, episodes.query)
        )
        known = {"support_recalled": self.support[support], "query_recalled": self.query[query]}
        return replace(batch, recalled=known)


def recall_videos(head: Head, bank: FeatureBank, episodes: Episodes, frames: int) -> Memory | None:
    """Let ``head`` see each video of ``episodes`` once, if most are in several and the head gains by it."""
    used = np.unique(np.concatenate([episodes.support.ravel(), episodes.query.ravel()]))
    if 2 * used.size > episodes.support.size + episodes.query.size:
        return None
    if head.recall_bytes(frames) * used.size > _RECALL_LIMIT:
        return None
    text = bank.text[torch.from_numpy(bank.pool.labels[used]).to(bank.device)]
    recalled = head.recall(bank.gather(used[None], frames)[0], text)
    if recalled is None:
        return None
    place = torch.full((len(bank.pool.ids),), -1, device=bank.device)
    place[torch.from_numpy(used).to(bank.device)] = torch.arange(used.size, device=bank.device)
    return Memory(*recalled, place)


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
    candidates = head.tunable()
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
