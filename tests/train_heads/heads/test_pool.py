"""Evidence from dot products: a plain loop beside it, and fits beside a fine grid."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipspm.train_heads.heads.parts.pool import (
    cosines,
    fit_factor,
    fit_weights,
    left_out,
    log_likelihood,
    look,
    move,
    to_classes,
)

E, S, Q, C, T, D = 2, 6, 3, 3, 4, 8
LABELS = torch.tensor([[2, 0, 1, 0, 2, 1], [1, 2, 2, 0, 0, 1]])
ONE_HOT = F.one_hot(LABELS, C).float()


def videos(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(E, S, T, D, generator=g), torch.randn(E, Q, T, D, generator=g)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", [look, move])
def test_scores_are_those_of_a_plain_loop(kind: object) -> None:
    support, query = videos()
    found = kind(support, query)  # type: ignore[operator]
    scores, left = to_classes(found.queries, ONE_HOT), left_out(found.supports, ONE_HOT)
    for e in range(E):
        s, q = support[e].double().numpy(), query[e].double().numpy()
        if kind is look:
            centre = s.mean((0, 1))
            s, q = s - centre, q - centre
        else:
            s, q = (x - x.mean(1, keepdims=True) for x in (s, q))
        s, q = unit(s), unit(q)
        for c in range(C):
            own = [i for i in range(S) if LABELS[e, i] == c]
            for i in range(Q):
                expected = np.mean([(q[i] * s[j]).sum(-1).mean() for j in own])
                assert float(scores[e, i, c]) == pytest.approx(expected, abs=1e-5)
            for i in range(S):
                others = [j for j in own if j != i]
                expected = np.mean([(s[i] * s[j]).sum(-1).mean() for j in others])
                assert float(left[e, i, c]) == pytest.approx(expected, abs=1e-5)


def test_a_class_with_one_support_cannot_be_left_out() -> None:
    support, query = videos()
    one = F.one_hot(torch.arange(3).expand(E, -1), C).float()
    found = cosines(support[:, :3], query)
    assert left_out(found.supports, one).diagonal(dim1=1, dim2=2).isnan().all()


def test_weights_are_the_best_of_a_grid() -> None:
    g = torch.Generator().manual_seed(1)
    scores = torch.randn(E, 2, S, C, generator=g).double()
    scores[:, 0] += 1.5 * ONE_HOT  # the first knows the labels
    prior, deviation = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])
    found = fit_weights(scores, LABELS, prior, deviation)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        logits = torch.einsum("k,ekvc->evc", weights.double(), scores)
        pull = ((weights - prior) / deviation).square().sum() / 2
        return pull - log_likelihood(logits, LABELS)

    best = torch.stack([loss(found[e])[e] for e in range(E)])
    grid = torch.cartesian_prod(torch.linspace(0, 3, 61), torch.linspace(0, 3, 61))
    every = torch.stack([loss(weights) for weights in grid])
    assert (best <= every.min(0).values + 1e-9).all()
    assert (found[:, 0] > found[:, 1]).all() and (found >= 0).all()


def test_weights_stay_with_the_prior_where_nothing_is_known() -> None:
    prior = torch.tensor([0.2, 0.8])
    found = fit_weights(torch.zeros(E, 2, S, C), LABELS, prior, prior / 2)
    torch.testing.assert_close(found, prior.double().expand(E, -1))


@pytest.mark.parametrize("offset", [None, 0.5])
def test_a_factor_is_the_best_of_a_grid(offset: float | None) -> None:
    g = torch.Generator().manual_seed(2)
    scores = torch.randn(E, S, C, generator=g).double() + ONE_HOT
    beside = None if offset is None else offset * torch.randn(E, S, C, generator=g).double()
    found = fit_factor(scores, LABELS, beside, 0.7)

    def loss(factor: torch.Tensor) -> torch.Tensor:
        logits = factor.view(-1, 1, 1) * scores + (0 if beside is None else beside)
        return 0.7 * factor - log_likelihood(logits, LABELS)

    every = torch.stack([loss(torch.full((E,), x).double()) for x in np.linspace(0, 5, 501).tolist()])
    assert (loss(found) <= every.min(0).values + 1e-9).all()
    assert (found > 0).all()


def test_scores_that_mislead_get_no_factor() -> None:
    assert (fit_factor(-5 * ONE_HOT, LABELS, None, 0.5) == 0).all()
    sharp = fit_factor(100 * ONE_HOT, LABELS, None, 0.5)
    assert torch.isfinite(sharp).all() and (sharp > 0).all() and math.isfinite(float(sharp.sum()))
