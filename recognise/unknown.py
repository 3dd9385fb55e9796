"""When none of the classes is meant: a threshold from leaving the known classes out, one by one.

Shapes: N videos, C classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """Videos that stand out by less than ``value`` are of none of the classes.

    ``false_alarms``: the expected share of videos of the classes that are called unknown; ``misses``: that of
    other videos that are given a class. Both are measured on classes that did not set the threshold.
    """

    value: float
    false_alarms: float
    misses: float


def standing_out(logits: npt.ArrayLike) -> Numbers:
    """Return by how much the best logit of each row of ``logits`` [N, C] is above the row's mean: [N].

    It depends less on the number of classes than the largest probability does.
    """
    found = np.asarray(logits, dtype=np.float64)
    return np.asarray(found.max(1) - found.mean(1))


def find_threshold(
    known: Numbers, known_classes: npt.NDArray[np.int64], other: Numbers, other_classes: npt.NDArray[np.int64]
) -> Threshold:
    """Set a threshold that is wrong equally seldom for both kinds of videos.

    ``known`` [N]: how much videos stand out among classes with their own, which ``known_classes`` [N] says;
    ``other``, ``other_classes``: the same where their own class was left out.
    """
    wrong = []
    for left in np.unique(other_classes):
        value = _best(known[known_classes != left], other[other_classes != left])
        wrong.append(
            (
                np.mean(known[known_classes == left] < value),
                np.mean(other[other_classes == left] >= value),
            )
        )
    false_alarms, misses = np.mean(wrong, axis=0)
    return Threshold(_best(known, other), float(false_alarms), float(misses))


def _best(known: Numbers, other: Numbers) -> float:
    """Return the middle one of the values between two scores with the least sum of both error rates."""
    every = np.unique(np.concatenate([known, other]))
    tried = np.concatenate([every[:1] - 1, (every[1:] + every[:-1]) / 2, every[-1:] + 1])
    errors = [np.mean(known < value) + np.mean(other >= value) for value in tried]
    best = tried[np.isclose(errors, np.min(errors))]
    return float(best[len(best) // 2])
