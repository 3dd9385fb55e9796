"""Means, intervals and paired comparisons of per-episode accuracies.

Two methods are compared on the same episodes, so the interval is that of the mean per-episode difference, not
of two means. Episodes share clips and classes: these intervals cover another draw of episodes, not another
set of classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.episodes.random import below, blocks, digest

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` values with the half width of its 95 % interval (fractions, not per cent)."""

    mean: float
    half: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its bootstrap interval [``low``, ``high``]."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float | int | bool]:
        """Return the fields and :attr:`excludes_zero`."""
        return {**asdict(self), "excludes_zero": self.excludes_zero}


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (0 for one value) over ``n`` seeds or splits."""

    mean: float
    std: float
    n: int


def estimate(values: npt.ArrayLike) -> Estimate:
    """Return the mean of ``values`` [n] and 1.96 * std / sqrt(n), std with n - 1 (0 for one value)."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("values is empty; a mean needs at least one")
    half = 1.96 * array.std(ddof=1) / np.sqrt(array.size) if array.size > 1 else 0.0
    return Estimate(float(array.mean()), float(half), array.size)


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of one number per seed."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("values is empty; a mean needs at least one")
    return Spread(float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else 0.0, array.size)


def paired(
    a: npt.ArrayLike, b: npt.ArrayLike, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Return the mean of ``a - b`` with a percentile bootstrap interval over episodes.

    ``a`` and ``b`` [n], or [seeds, n] for runs with several seeds on the same n episodes: differences are
    averaged over seeds first. For the spread over seeds see :func:`paired_over_seeds`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a has shape {first.shape} and b {second.shape}: not the same episodes")
    if first.size == 0:
        raise ValueError("a is empty; a difference needs at least one episode")
    difference = (first - second).reshape(-1, first.shape[-1]).mean(0)
    means = bootstrap_means(difference, resamples=resamples, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(difference.mean()), float(low), float(high), difference.size)


def paired_over_seeds(a: npt.ArrayLike, b: npt.ArrayLike) -> Spread:
    """Return mean and standard deviation over seeds of the mean of ``a - b``, both [seeds, n]."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"a has shape {first.shape} and b {second.shape}: both must be [seeds, n]")
    return spread((first - second).mean(1).tolist())


def bootstrap_means(values: Floats, *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Return means of draws with replacement from ``values`` [n], [resamples]; seeded and portable."""
    n = values.size
    key = digest("clipspm-bootstrap-v1", seed)
    out = np.empty(resamples)
    step = max(1, 2_000_000 // n)  # 16 MB of indices at a time
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        out[start : start + count] = values[below(blocks(key, start, count, n), n)].mean(1)
    return out


def accuracies(predictions: npt.NDArray[np.int64], episodes: Episodes) -> npt.NDArray[np.float64]:
    """Return the accuracy of each episode, [n]."""
    return np.asarray((predictions == episodes.query_labels).mean(1), dtype=np.float64)


def reliability(confidence: npt.NDArray[np.floating[Any]], right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Compare the probabilities of the chosen classes with how often they are right; same shapes.

    ``bins``: those of ten equal ones from 0 to 1 that hold any, each with its mean ``confidence``,
    ``accuracy`` and ``share`` of all; ``ece``: the expected calibration error, their mean gap (arXiv
    1706.04599).
    """
    sure, right = confidence.ravel(), right.ravel()
    place = np.minimum((sure * 10).astype(int), 9)
    bins = [
        {
            "confidence": float(sure[place == i].mean()),
            "accuracy": float(right[place == i].mean()),
            "share": float((place == i).mean()),
        }
        for i in np.unique(place)
    ]
    return {"ece": sum(b["share"] * abs(b["confidence"] - b["accuracy"]) for b in bins), "bins": bins}
