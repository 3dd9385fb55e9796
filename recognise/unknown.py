"""When none of the classes is meant: a threshold from leaving the known classes out, one by one.

Shapes: N videos, C classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

#: the share of videos of the classes that may be called unknown
_FALSE_ALARMS = 0.1


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
    """Set a threshold that a tenth of videos of the classes fall below.

    ``known`` [N]: how much videos stand out among classes with their own, which ``known_classes`` [N] says;
    ``other``, ``other_classes``: the same where their own class was left out.
    """
    wrong = []
    for left in np.unique(other_classes):
        value = _below(known[known_classes != left])
        wrong.append(
            (
                np.mean(known[known_classes == left] < value),
                np.mean(other[other_classes == left] >= value),
            )
        )
    false_alarms, misses = np.mean(wrong, axis=0)
    return Threshold(_below(known), float(false_alarms), float(misses))


def _below(known: Numbers) -> float:
    return float(np.quantile(known, _FALSE_ALARMS))
