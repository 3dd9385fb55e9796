"""Accuracy by class, which class is taken for which, and an interval over another draw of test classes.

Shapes: n episodes, C ways, Q queries, K classes that occur in them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.evaluation.stats import bootstrap_means

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassTable:
    """``names`` [K], sorted; ``confusion`` [K, K]: queries of a row's class taken for the column's."""

    names: tuple[str, ...]
    confusion: Ints

    @classmethod
    def of(cls, predictions: Ints, episodes: Episodes) -> "ClassTable":
        """Count ``predictions`` [n, Q], each a class 0..C-1 of its episode."""
        used, classes = np.unique(episodes.classes, return_inverse=True)
        classes = classes.reshape(episodes.classes.shape)
        true = np.take_along_axis(classes, episodes.query_labels, axis=1)
        taken = np.take_along_axis(classes, predictions, axis=1)
        k = len(used)
        counts = np.bincount((true * k + taken).ravel(), minlength=k * k).reshape(k, k)
        return cls(tuple(episodes.class_names[c] for c in used), counts.astype(np.int64))

    @property
    def accuracies(self) -> Floats:
        """[K]: share of each class's queries that were right (NaN for a class without queries)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.confusion.diagonal() / self.confusion.sum(1), dtype=np.float64)


def class_interval(
    accuracies: Floats, episodes: Episodes, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of the mean accuracy over another draw of as many test classes, and of episodes.

    ``accuracies`` [n], by episode. What having class k in an episode adds to its accuracy, b_k, is taken
    from the mean over the episodes with k: (K-1)/(K-C) times its distance from the mean over all, since
    those episodes differ in the other classes too. The K values of C * b_k, shrunk by the share of their
    variance that episodes account for and widened by sqrt(K/(K-1)) as K is small, are resampled; the
    episodes' own interval is added in quadrature. None where every episode has the same classes.
    """
    used, classes = np.unique(episodes.classes, return_inverse=True)
    classes = classes.reshape(episodes.classes.shape)
    k, way, n = len(used), episodes.spec.way, len(accuracies)
    if k <= way or n < 2:
        return None
    mean, variance = float(accuracies.mean()), float(accuracies.var(ddof=1))
    times = np.bincount(classes.ravel(), minlength=k)
    sums = np.bincount(classes.ravel(), weights=np.repeat(accuracies, way), minlength=k)
    factor = (k - 1) / (k - way) * way
    effects = (sums / times - mean) * factor
    effects -= effects.mean()
    noise = factor**2 * variance * float((1 / times - 1 / n).clip(min=0).mean())
    spread = float((effects**2).sum() / (k - 1))
    effects *= np.sqrt(max(0.0, 1 - noise / spread) * k / (k - 1)) if spread else 0.0
    means = bootstrap_means(effects, resamples=resamples, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    own = 1.96 * np.sqrt(variance / n)
    return max(0.0, mean - float(np.hypot(low, own))), min(1.0, mean + float(np.hypot(high, own)))
