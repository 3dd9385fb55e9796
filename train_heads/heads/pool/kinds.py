"""Kinds of evidence that need no training: how videos look, how they move, and how they drift.

All compare videos frame by frame; everything that a score needs of an episode is in the cosines of its frames
(:class:`Cosines`), whether they are computed here or read from a table.

Shapes: E episodes, S supports, Q queries, V of either, C classes, T frames, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspm.train_heads.heads.parts.otam import full


class Cosines(NamedTuple):
    """Cosines of frames at the same index: of supports [E, T, S, S], of queries and supports [E, T, Q, S]."""

    supports: Tensor
    queries: Tensor


def look(support: Tensor, query: Tensor) -> Cosines:
    """Compare what is seen: frames [E, V, T, D] minus the mean frame of the episode's supports."""
    centre = support.mean((1, 2), keepdim=True)
    return cosines(support - centre, query - centre)


def still(support: Tensor, query: Tensor) -> Cosines:
    """Compare what is seen in whatever order: :func:`look` of mean frames, so that T is 1."""
    return look(support.mean(2, keepdim=True), query.mean(2, keepdim=True))


def move(support: Tensor, query: Tensor) -> Cosines:
    """Compare what moves: frames [E, V, T, D] minus their own clip's mean frame."""
    return cosines(moving(support), moving(query))


def drift(support: Tensor, query: Tensor) -> Cosines:
    """Compare what moves slowly: :func:`move` of frames that are averaged with their neighbours."""
    return cosines(drifting(support), drifting(query))


KINDS: dict[str, Callable[[Tensor, Tensor], Cosines]] = {
    "look": look,
    "still": still,
    "move": move,
    "drift": drift,
}


def moving(frames: Tensor) -> Tensor:
    """Take the mean frame off each clip, [..., T, D]."""
    return frames - frames.mean(-2, keepdim=True)


def drifting(frames: Tensor) -> Tensor:
    """Take the mean frame off each clip, and average frames [..., T, D] over time.

    Weights fall linearly to zero, over T / 4 frames to either side; beyond its ends a clip stands still.
    """
    count = frames.shape[-2]
    reach, times = count // 4, torch.arange(count)
    average = torch.zeros(count, count)
    for step in range(-reach, reach + 1):
        average[times, (times + step).clamp(0, count - 1)] += reach + 1 - abs(step)
    average /= (reach + 1) ** 2
    with torch.autocast(frames.device.type, enabled=False):
        return moving(average.to(frames) @ frames)


def cosines(support: Tensor, query: Tensor) -> Cosines:
    """Return the cosines of frames [E, V, T, D]; 0 for frames that are zero."""
    with torch.autocast(support.device.type, enabled=False):
        s, q = (F.normalize(full(x), dim=-1).transpose(1, 2) for x in (support, query))
        return Cosines(s @ s.mT, q @ s.mT)


def class_scores(found: Cosines, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Score queries [E, Q, C], and each support without itself in its class's prototype, [E, S, C].

    A score is the mean over t of the cosine of frame t with the mean of the normalised frames t of a class's
    supports. Supports that are alone in their class score 0 for it.
    """
    member = one_hot.unsqueeze(1).to(found.supports)
    alike = found.supports @ member  # of each support with the sum of a class's supports
    square = (member * alike).sum(2, keepdim=True)  # of the length of that sum
    itself = member * found.supports.diagonal(dim1=2, dim2=3).unsqueeze(-1)
    others, others_square = alike - itself, square - 2 * member * alike + itself
    queries = (found.queries @ member) * _inverse_length(square)
    return queries.mean(1), (others * _inverse_length(others_square)).mean(1)


def _inverse_length(square: Tensor) -> Tensor:
    """Return ``1 / sqrt(square)``, 0 where rounding is all that is left."""
    return torch.where(square > 1e-6, square, torch.inf).rsqrt()


def spread(found: Cosines, one_hot: Tensor) -> Tensor:
    """Return the standard deviation of cosines between supports of different classes, [E].

    Where pairs are few it is drawn to a fifth of their mean distance, as if that were one more.
    """
    member = one_hot.to(found.supports)
    other = 1 - member @ member.mT
    alike, pairs = found.supports.mean(1), other.sum((1, 2))
    mean = (alike * other).sum((1, 2)) / pairs
    square = ((alike - mean[:, None, None]).square() * other).sum((1, 2)) / pairs
    seen = pairs / 2
    expected = (0.2 * (1 - mean)).square()
    return ((seen * square + expected) / (seen + 1)).sqrt().clamp(min=1e-4)


def products(videos: Tensor, one_hot: Tensor) -> Tensor:
    """Return the mean product of two of ``videos`` [E, S, D] that are of different classes, [E]."""
    member = one_hot.to(videos)
    other = 1 - member @ member.mT
    return ((videos @ videos.mT) * other).sum((1, 2)) / other.sum((1, 2)).clamp(min=1)
