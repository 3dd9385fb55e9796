"""Evidence that needs no training, from dot products of frames, and how pieces of it are weighed.

A piece of evidence compares videos frame by frame: a score is the mean over t of the cosine between frame t
of a query and the mean of the (normalised) frames t of a class's supports. Everything is linear in the cosines
between videos, so :func:`cosines` is all that is needed of the features; the scores of queries and those of
the supports, each left out of its own prototype, follow from them.

Shapes: E episodes, S supports, Q queries, V of either, C classes, T frames, D width, K pieces of evidence.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspm.train_heads.heads.parts.otam import full


class Cosines(NamedTuple):
    """Mean cosines of frames: between supports [E, S, S], and of queries with supports [E, Q, S]."""

    supports: Tensor
    queries: Tensor


def look(support: Tensor, query: Tensor) -> Cosines:
    """Compare what is seen: frames [E, V, T, D] minus the mean frame of the episode's supports."""
    centre = full(support).mean((1, 2), keepdim=True)
    return cosines(support - centre, query - centre)


def move(support: Tensor, query: Tensor) -> Cosines:
    """Compare what moves: frames [E, V, T, D] minus their own clip's mean frame."""
    return cosines(support - full(support).mean(2, keepdim=True), query - full(query).mean(2, keepdim=True))


def cosines(support: Tensor, query: Tensor) -> Cosines:
    """Mean over frames of the cosine between videos, frames [E, V, T, D] compared at the same index."""
    with torch.autocast(support.device.type, enabled=False):
        s, q = (F.normalize(full(x), dim=-1).flatten(2) for x in (support, query))
        frames = support.shape[2]
        return Cosines(s @ s.mT / frames, q @ s.mT / frames)


def to_classes(found: Tensor, one_hot: Tensor) -> Tensor:
    """Average cosines with supports [E, V, S] over the supports of each class: [E, V, C]."""
    return found @ one_hot / one_hot.sum(1, keepdim=True)


def left_out(found: Tensor, one_hot: Tensor) -> Tensor:
    """Score each support [E, S, C] without itself in its class's prototype, from cosines [E, S, S].

    Not a number for a class with one support.
    """
    own = found.diagonal(dim1=1, dim2=2).unsqueeze(-1) * one_hot
    return (found @ one_hot - own) / (one_hot.sum(1, keepdim=True) - one_hot)


def spread(scores: Tensor) -> Tensor:
    """Mean over episodes and videos of the standard deviation over classes: [E, V, C] -> []."""
    return scores.std(-1, correction=0).mean()


def fit_weights(
    scores: Tensor, labels: Tensor, prior: Tensor, deviation: Tensor, *, steps: int = 20
) -> Tensor:
    """Fit non-negative weights of pieces of evidence to labelled videos, a set per episode: [E, K].

    Maximum a posteriori: the likelihood of ``labels`` [E, V] under ``softmax(sum_k w_k scores_k)``, scores
    [E, K, V, C], times a Gaussian with mean ``prior`` and standard deviation ``deviation``, [E, K] or [K].
    The problem is convex; each step solves its quadratic model and stays non-negative.
    """
    scores, prior, deviation = scores.double(), prior.double(), deviation.double()
    prior = prior.expand(len(scores), -1)
    weights = prior.clone()
    truth = F.one_hot(labels.long(), scores.shape[-1]).to(scores)
    precision = deviation.expand_as(weights).square().reciprocal()
    for _ in range(steps):
        share = torch.einsum("ek,ekvc->evc", weights, scores).softmax(-1)
        gradient = torch.einsum("evc,ekvc->ek", share - truth, scores) + precision * (weights - prior)
        mean = torch.einsum("evc,ekvc->ekv", share, scores)
        moments = torch.einsum("evc,ekvc,elvc->ekl", share, scores, scores)
        curvature = moments - torch.einsum("ekv,elv->ekl", mean, mean) + precision.diag_embed()
        # pieces at zero that would go below stay there, and take no part in the step
        free = (weights > 0) | (gradient < 0)
        pinned = (~free).to(curvature)
        curvature = curvature * free.unsqueeze(1) * free.unsqueeze(2) + pinned.diag_embed()
        step = torch.linalg.solve(curvature, gradient * free)
        weights = (weights - step).clamp(min=0)
    return weights


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the log-probabilities of ``labels`` [E, V] under ``logits`` [E, V, C]: [E]."""
    return logits.log_softmax(-1).gather(-1, labels.long().unsqueeze(-1)).squeeze(-1).sum(-1)


def fit_factor(
    scores: Tensor, labels: Tensor, offset: Tensor | None, penalty: float, *, steps: int = 30
) -> Tensor:
    """Fit one factor, zero or more, of ``scores`` [E, V, C] beside the logits ``offset`` [E, V, C]: [E].

    Maximum a posteriori of ``labels`` [E, V] with an exponential prior of rate ``penalty``: scores that know
    nothing of the labels, or mislead, get zero.
    """
    scores = scores.double()
    offset = torch.zeros_like(scores) if offset is None else offset.double()
    truth = scores.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)
    factor = scores.new_zeros(len(scores))
    for _ in range(steps):
        share = (offset + factor[:, None, None] * scores).softmax(-1)
        mean = (share * scores).sum(-1)
        gradient = (mean - truth).sum(-1) + penalty
        curvature = ((share * scores.square()).sum(-1) - mean.square()).sum(-1).clamp(min=1e-6)
        # at most double, plus one: far from the optimum the quadratic model is no guide
        factor = torch.minimum(factor - gradient / curvature, 2 * factor + 1).clamp(min=0)
    return factor
