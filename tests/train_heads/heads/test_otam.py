"""OTAM, the frame distance and the matchers against plain loops in float64 and recorded values."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from clipspm.train_heads.heads.parts.matching import MATCHERS, matcher
from clipspm.train_heads.heads.parts.otam import frame_distance, otam_distance

#: no bound: the log domain; a bound of 2: plain sums where they are safe
BOUNDS = (None, 2.0)


def softmin(values: list[float], smoothing: float) -> float:
    low = min(values)
    return low - smoothing * math.log(sum(math.exp(-(v - low) / smoothing) for v in values))


def slow_otam(dist: list[list[float]], smoothing: float) -> float:
    """The recurrence of the padded matrix, cell by cell."""
    rows, last = len(dist), len(dist[0]) + 1
    padded = [[0.0, *row, 0.0] for row in dist]
    cum = [[0.0] * (last + 1) for _ in range(rows)]
    for m in range(1, last + 1):
        cum[0][m] = cum[0][m - 1] + padded[0][m]
    for row, m in itertools.product(range(1, rows), range(1, last + 1)):
        before = [cum[row - 1][m - 1], cum[row][m - 1]]
        if m in (1, last):
            before.append(cum[row - 1][m])
        cum[row][m] = padded[row][m] + softmin(before, smoothing)
    return cum[-1][-1]


def slow_two_way(dist: Tensor, smoothing: float) -> float:
    return slow_otam(dist.tolist(), smoothing) + slow_otam(dist.T.tolist(), smoothing)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("key", "both"), [("one_way", False), ("two_way", True)])
def test_recorded_distances(shared_dir: Path, bound: float | None, key: str, both: bool) -> None:
    golden = load_file(shared_dir / "golden" / "otam_8x8.safetensors")
    found = otam_distance(golden["dist"], bidirectional=both, bound=bound)
    torch.testing.assert_close(found, golden[key], rtol=1e-5, atol=1e-4)


sizes = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(
    t1=sizes,
    t2=sizes,
    smoothing=st.floats(0.05, 3),
    seed=st.integers(0, 2**31),
    bound=st.sampled_from(BOUNDS),
)
def test_equal_to_plain_loops(t1: int, t2: int, smoothing: float, seed: int, bound: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    dist = 2 * torch.rand(2, 3, t1, t2, generator=generator, dtype=torch.float64)
    both = otam_distance(dist, smoothing=smoothing, bound=bound)
    one = otam_distance(dist, smoothing=smoothing, bidirectional=False, bound=bound)
    assert both.shape == one.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        assert float(both[i, j]) == pytest.approx(slow_two_way(dist[i, j], smoothing), abs=1e-9)
        assert float(one[i, j]) == pytest.approx(slow_otam(dist[i, j].tolist(), smoothing), abs=1e-9)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 6), (6, 1), (3, 2), (2, 3, 5, 4), (4, 7)])
def test_gradient_equals_finite_differences(shape: tuple[int, ...], both: bool, bound: float | None) -> None:
    dist = (2 * torch.rand(*shape, dtype=torch.float64)).requires_grad_()

    def distance(d: Tensor) -> Tensor:
        return otam_distance(d, bidirectional=both, bound=bound)

    assert torch.autograd.gradcheck(distance, (dist,))


@pytest.mark.parametrize("bound", BOUNDS)
def test_float32_gradient_is_that_of_float64(bound: float | None) -> None:
    dist = 2 * torch.rand(50, 8, 8, dtype=torch.float64)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = dist.to(dtype).requires_grad_()
        otam_distance(leaf, bound=bound).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.double())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("t1", "t2"), [(64, 64), (3, 200), (200, 3)])
@pytest.mark.parametrize("bound", BOUNDS)
def test_long_sequences_neither_underflow_nor_drift(t1: int, t2: int, bound: float | None) -> None:
    dist = (2 * torch.rand(t1, t2)).requires_grad_()
    found = otam_distance(dist, bound=bound)
    found.backward()
    expected = slow_two_way(dist.detach().double(), 0.5)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-3)
    assert dist.grad is not None
    assert torch.isfinite(dist.grad).all()
    assert float(dist.grad.sum()) >= 2 * min(t1, t2) - 0.01


@pytest.mark.parametrize("scale", [1e4, -1e4, 1e-6])
def test_extreme_distances_stay_exact_and_finite(scale: float) -> None:
    dist = (scale * torch.rand(5, 6, 8, dtype=torch.float64)).float().requires_grad_()
    found = otam_distance(dist)
    found.sum().backward()
    assert dist.grad is not None
    assert torch.isfinite(dist.grad).all()
    for value, problem in zip(found.detach(), dist.detach().double(), strict=True):
        assert float(value) == pytest.approx(slow_two_way(problem, 0.5), rel=1e-5, abs=1e-4)


def test_identical_and_opposite_frames_under_the_bound() -> None:
    for value in (0.0, 2.0):
        dist = torch.full((1, 15, 15), value)
        plain, logs = otam_distance(dist, bound=2.0), otam_distance(dist)
        torch.testing.assert_close(plain, logs, rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    dist = torch.rand(4, 8, 8).bfloat16()
    assert torch.equal(otam_distance(dist), otam_distance(dist.float()))


@pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 0, 4)])
def test_empty_sequences_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"dist: found shape .*; needed \[..., T1, T2\]"):
        otam_distance(torch.zeros(shape))


@pytest.mark.parametrize("smoothing", [0, -1.0, float("nan")])
def test_smoothing_must_be_positive(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing: found .*; needed a positive number"):
        otam_distance(torch.zeros(2, 2), smoothing=smoothing)


def test_frame_distance_is_one_minus_the_damped_cosine() -> None:
    x, y = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    found = frame_distance(x, y)
    for e, i, j in itertools.product(range(2), range(3), range(4)):
        damped = x[e, i].norm() * y[e, j].norm() + 0.01
        torch.testing.assert_close(found[e, i, j], 1 - x[e, i] @ y[e, j] / damped)


def test_frame_distance_of_zero_frames_has_a_gradient() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    frame_distance(x, torch.randn(4, 3)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_frame_distance_keeps_float32_under_autocast() -> None:
    x, y = torch.randn(3, 16), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frame_distance(x, y), frame_distance(x.float(), y.float()))
    assert frame_distance(x, y).dtype == torch.float32


def slow_bimhm(dist: Tensor) -> float:
    return float(dist.min(0).values.mean() + dist.min(1).values.mean())


@pytest.mark.parametrize(
    ("name", "distance"),
    [
        ("otam", lambda d: slow_two_way(d, 0.25)),
        ("bimhm", slow_bimhm),
        ("mean-cosine", lambda d: float(d.diagonal().mean())),
    ],
)
def test_every_matcher_equals_its_formula(name: str, distance: Any) -> None:
    prototypes = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    queries = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    found = matcher(name, smoothing=0.25)(prototypes, queries)
    assert found.shape == (2, 5, 3)
    for e, q, c in itertools.product(range(2), range(5), range(3)):
        dist = frame_distance(queries[e, q], prototypes[e, c])
        assert float(found[e, q, c]) == pytest.approx(distance(dist), abs=1e-9)


def test_unknown_matchers_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="matcher: found 'dtw'; needed one of " + ", ".join(MATCHERS)):
        matcher("dtw")
