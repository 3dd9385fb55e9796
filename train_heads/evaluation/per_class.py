"""Accuracy by class, confusions between classes, and an interval that covers another draw of test classes.

Shapes: n episodes, C ways, Q queries, K classes that occur in them, S training seeds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipspm.tables import Table
from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.evaluation.stats import bootstrap_means

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


#: the terminal shows the confusion matrix of up to 12 classes; for more, the 20 most confused pairs
_MATRIX_CLASSES, _PAIRS_SHOWN = 12, 20


@dataclass(frozen=True)
class ClassTable:
    """Queries counted by true and predicted class.

    ``names`` [K], sorted; ``confusion`` [K, K]: queries of the row's class predicted as the column's, summed
    over S seeds. ``half`` [K]: half width of the 95 % interval of each class's accuracy over the draw of
    episodes, NaN where it cannot be estimated (all queries right, or all wrong).
    """

    names: tuple[str, ...]
    confusion: Ints
    half: Floats
    seeds: int = 1

    @classmethod
    def of(cls, predictions: Ints, episodes: Episodes) -> "ClassTable":
        """Count ``predictions`` [n, Q] or [S, n, Q], each a class 0..C-1 of its episode."""
        used, classes = np.unique(episodes.classes, return_inverse=True)
        classes = classes.reshape(episodes.classes.shape)
        true = np.take_along_axis(classes, episodes.query_labels, axis=1)
        k, counts = len(used), np.zeros(len(used) ** 2, np.int64)
        runs = predictions.reshape(-1, *predictions.shape[-2:])
        for run in runs:
            taken = np.take_along_axis(classes, run, axis=1)
            counts += np.bincount((true * k + taken).ravel(), minlength=k * k)
        confusion = counts.reshape(k, k)
        names = tuple(episodes.class_names[c] for c in used)
        right = (runs == episodes.query_labels).mean(0)
        return cls(names, confusion, _half_widths(right, true, k), len(runs))

    @property
    def queries(self) -> Ints:
        """Test queries of each class, [K], each counted once."""
        return self.confusion.sum(1) // self.seeds

    @property
    def accuracies(self) -> Floats:
        """Share of each class's queries that were right, [K] (NaN for a class without queries)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.confusion.diagonal() / self.confusion.sum(1), dtype=np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Return ``classes`` (accuracies as fractions) and ``confusion`` (counts) as plain values."""
        own = ("class", "queries", "accuracy", "interval95")
        classes = [{key: record[key] for key in own} for record in self.records()]
        return {"classes": classes, "confusion": self.confusion.tolist()}

    def records(self) -> list[dict[str, Any]]:
        """Return a row per class for CSV: accuracy and interval as fractions, its row of ``confusion``."""
        return [
            {
                "class": name,
                "queries": int(self.queries[i]),
                "accuracy": _known(self.accuracies[i]),
                "interval95": _known(self.half[i]),
                **{
                    f"taken for {other}": int(n)
                    for other, n in zip(self.names, self.confusion[i], strict=True)
                },
            }
            for i, name in enumerate(self.names)
        ]

    def tables(self, title: str) -> list[Table]:
        """Return accuracy by class and the confusion matrix (for many classes, the most confused pairs)."""
        rows = []
        for name, queries, accuracy, half in zip(
            self.names, self.queries, self.accuracies, self.half, strict=True
        ):
            own = "" if np.isnan(half) else f" ± {100 * half:.1f}"
            rows.append((name, f"{queries}", "" if np.isnan(accuracy) else f"{100 * accuracy:.1f}{own}"))
        notes = ["±: 95 % interval over episodes"] * (not np.isnan(self.half).all())
        return [Table(("class", "queries", "accuracy (%)"), rows, title, notes), self._confusion(title)]

    def _confusion(self, title: str) -> Table:
        sums = self.confusion.sum(1)
        share = np.divide(
            100 * self.confusion,
            sums[:, None],
            where=sums[:, None] > 0,
            out=np.full(self.confusion.shape, np.nan),
        )
        if len(self.names) <= _MATRIX_CLASSES:
            numbers = [str(i + 1) for i in range(len(self.names))]
            lines = [
                (f"{number} {name}", *("" if np.isnan(value) else f"{value:.0f}" for value in row))
                for number, name, row in zip(numbers, self.names, share, strict=True)
            ]
            note = "% of the row's queries, by the number of the class that they were taken for"
            return Table(("class", *numbers), lines, f"{title}: taken for", [note])
        apart = np.where(np.eye(len(self.names), dtype=bool), -1.0, np.nan_to_num(share))
        order = np.argsort(-apart, axis=None, kind="stable")[:_PAIRS_SHOWN]
        pairs = [divmod(int(place), len(self.names)) for place in order]
        lines = [(self.names[i], self.names[j], f"{apart[i, j]:.1f}") for i, j in pairs if apart[i, j] > 0]
        note = f"the {len(lines)} pairs confused most; CSV has the whole matrix"
        return Table(
            ("class", "taken for", "queries (%)"), lines, f"{title}: taken for", [note], text=("taken for",)
        )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _half_widths(right: Floats, true: Ints, k: int) -> Floats:
    """Return 1.96 standard errors of each class's accuracy, [K], with the queries of an episode as a cluster.

    ``right`` [n, Q]: whether a query was right (or in which share of the seeds); ``true`` [n, Q]: its class,
    0..K-1. The accuracy is a ratio of sums over episodes, hence the linearised variance. NaN where the result
    is 0.
    """
    place = (np.arange(len(true))[:, None] * k + true).ravel()
    cells, each = np.unique(place, return_inverse=True)  # pairs of an episode and a class in it
    queries, sums = np.bincount(each), np.bincount(each, weights=right.ravel())
    of, total = cells % k, np.bincount(true.ravel(), minlength=k)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.bincount(of, weights=sums, minlength=k) / total
        squares = np.bincount(of, weights=(sums - shares[of] * queries) ** 2, minlength=k)
        episodes = np.bincount(of, minlength=k)
        half = 1.96 * np.sqrt(squares * episodes / (episodes - 1)) / total
    return np.where(half > 0, half, np.nan)


def class_interval(
    accuracies: Floats, episodes: Episodes, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of the mean accuracy over another draw of as many test classes, and of episodes.

    ``accuracies`` [n], by episode. The effect b_k of having class k in an episode is estimated from the mean
    over the episodes with k: (K-1)/(K-C) times its distance from the overall mean, because those episodes
    also differ in their other classes. The K values C * b_k are shrunk by the share of their variance that
    episodes explain, widened by sqrt(K/(K-1)) because K is small, and resampled; the episodes' own interval
    is added in quadrature. None if every episode has the same classes, or there is only one episode.
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
