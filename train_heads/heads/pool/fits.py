"""Weights of evidence, fitted to labelled videos: a small convex problem per episode, all solved at once.

Shapes: E episodes, V videos, C classes, K pieces of evidence.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

#: a step of all weights below this share of the largest ends a fit
_ENOUGH = 1e-5


def fit_weights(
    scores: Tensor, labels: Tensor, prior: Tensor, deviation: Tensor, *, steps: int = 20
) -> Tensor:
    """Fit non-negative weights of pieces of evidence, [E, K].

    Maximum a posteriori: the likelihood of ``labels`` [E, V] under ``softmax(sum_k w_k scores_k)``, scores
    [E, K, V, C], times a Gaussian with mean ``prior`` and standard deviation ``deviation``, [E, K] or [K].
    Each step solves the quadratic model and stays non-negative.
    """
    scores, prior, deviation = scores.double(), prior.double(), deviation.double()
    prior = prior.expand(len(scores), -1)
    weights = prior.clone()
    truth = F.one_hot(labels.long(), scores.shape[-1]).to(scores)
    precision = deviation.expand_as(weights).square().reciprocal()
    flat = scores.flatten(2)  # [E, K, V*C]
    for _ in range(steps):
        share = (weights.unsqueeze(1) @ flat).view_as(truth).softmax(-1)
        residual = (share - truth).flatten(1).unsqueeze(-1)
        gradient = (flat @ residual).squeeze(-1) + precision * (weights - prior)
        mean = (scores * share.unsqueeze(1)).sum(-1)  # [E, K, V]
        weighted = flat * share.flatten(1).unsqueeze(1)
        curvature = weighted @ flat.mT - mean @ mean.mT + precision.diag_embed()
        # pieces at zero that would go below stay there, and take no part in the step
        free = ((weights > 0) | (gradient < 0)).to(curvature)
        curvature = curvature * free.unsqueeze(1) * free.unsqueeze(2) + (1 - free).diag_embed()
        after = (weights - torch.linalg.solve(curvature, gradient * free)).clamp(min=0)
        change, weights = (after - weights).abs().amax(), after
        if float(change) < _ENOUGH * float(weights.amax()):
            break
    return weights


def fit_factor(
    scores: Tensor, labels: Tensor, offset: Tensor | None, penalty: float | Tensor, *, steps: int = 30
) -> Tensor:
    """Fit one factor, zero or more, of ``scores`` [E, V, C] beside the logits ``offset`` [E, V, C]: [E].

    Maximum a posteriori of ``labels`` [E, V] with an exponential prior of rate ``penalty``, a number or [E]:
    scores that know nothing of the labels, or mislead, get zero.
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
        after = torch.minimum(factor - gradient / curvature, 2 * factor + 1).clamp(min=0)
        change, factor = (after - factor).abs().amax(), after
        if float(change) < _ENOUGH * (1 + float(factor.amax())):
            break
    return factor


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the log-probabilities of ``labels`` [E, V] under ``logits`` [E, V, C]: [E]."""
    return logits.log_softmax(-1).gather(-1, labels.long().unsqueeze(-1)).squeeze(-1).sum(-1)
