"""Means, intervals and paired differences against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipspm.train_heads.evaluation.stats import (
    bootstrap_means,
    estimate,
    paired,
    paired_over_seeds,
    reliability,
    spread,
)


def test_interval_is_the_stated_formula() -> None:
    values = [0.2, 0.4, 1.0, 0.6]
    found = estimate(values)
    assert found.mean == pytest.approx(0.55)
    assert found.half == pytest.approx(1.96 * np.std(values, ddof=1) / 2)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(500):
        found = estimate(rng.binomial(5, 0.7, size=200) / 5)
        inside += abs(found.mean - 0.7) <= found.half
    assert 460 <= inside <= 490


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    sure = np.array([[0.95, 0.95], [0.55, 1.0]])
    right = np.array([[True, False], [True, True]])
    found = reliability(sure, right)
    assert [b["share"] for b in found["bins"]] == [0.25, 0.75]
    assert found["bins"][1]["confidence"] == pytest.approx(2.9 / 3)
    assert found["ece"] == pytest.approx(0.25 * 0.45 + 0.75 * (2.9 / 3 - 2 / 3))
    draws = np.random.default_rng(0)
    honest = draws.random(100_000)
    assert reliability(honest, draws.random(100_000) < honest)["ece"] < 0.01


def test_paired_interval_is_narrower_than_the_spread_of_episodes() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, size=400)  # difficulty shared by both methods
    a, b = hard + 0.1 + 0.05 * rng.normal(size=400), hard + 0.05 * rng.normal(size=400)
    found = paired(a, b)
    assert found.excludes_zero
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.03


def test_bootstrap_interval_agrees_with_the_normal_one() -> None:
    a = np.random.default_rng(1).binomial(5, 0.6, size=1000) / 5
    found, normal = paired(a, np.zeros(1000)), estimate(a)
    assert found.high - found.mean == pytest.approx(normal.half, rel=0.1)
    assert found.mean - found.low == pytest.approx(normal.half, rel=0.1)


def test_equal_methods_differ_by_exactly_nothing() -> None:
    a = np.random.default_rng(2).random(50)
    found = paired(a, a)
    assert (found.mean, found.low, found.high, found.excludes_zero) == (0, 0, 0, False)


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(3).random(60)
    assert np.array_equal(bootstrap_means(values, seed=4), bootstrap_means(values, seed=4))
    assert not np.array_equal(bootstrap_means(values, seed=4), bootstrap_means(values, seed=5))


def test_bootstrap_in_parts_equals_bootstrap_at_once() -> None:
    values = np.random.default_rng(3).random(3_000)  # 2,000 resamples take several parts
    first = bootstrap_means(values, resamples=2000)
    assert np.array_equal(first[:100], bootstrap_means(values, resamples=100))


def test_seeds_are_averaged_before_episodes_are_resampled() -> None:
    a = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = paired(a, np.zeros((2, 2)))
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 2)
    assert paired_over_seeds(a, np.zeros((2, 2))).std == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0, abs=1e-12)


def test_different_episodes_are_not_paired() -> None:
    with pytest.raises(ValueError, match="not the same episodes"):
        paired([1.0, 2.0], [1.0])


@pytest.mark.parametrize("function", [estimate, spread])
def test_nothing_has_no_mean(function: object) -> None:
    with pytest.raises(ValueError, match="empty"):
        function([])
