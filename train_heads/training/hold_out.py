"""Hold out a part of the training set to select weights, where a data set has no validation classes.

Long training without selection hurt on real clips (docs/recipes.md). Whole classes are the better test of
unseen ones; where classes are few, some videos of every class are held out instead.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.episodes.random import digest

#: what the weights of a run were selected on
Selection = Literal["val", "held-out classes", "held-out videos", "none"]

_CLASSES_LEFT = 8  # hold out classes only if at least so many are left to train on
_SHARE_OF_CLASSES, _SHARE_OF_VIDEOS = 5, 4  # hold out one in so many
_FEWEST_CLASSES, _FEWEST_VIDEOS = 2, 3  # but no fewer than this


def set_aside(
    pool: Pool, *, way: int, shot: int, queries: int
) -> tuple[Selection, npt.NDArray[np.bool_]] | None:
    """Choose what to hold out of ``pool``: the kind, and a mask of its videos, [N]; None if it is too small.

    The choice depends on the names of classes and videos only. What is left is enough for training episodes
    of ``way``, ``shot`` and ``queries``.
    """
    classes = len(pool.names)
    held = max(_FEWEST_CLASSES, classes // _SHARE_OF_CLASSES)
    if classes - held >= max(way, _CLASSES_LEFT):
        chosen = _first_by_hash(pool.names, held)
        if pool.sizes[chosen].min() > 1:
            return "held-out classes", np.isin(pool.labels, chosen)
    each = np.maximum(_FEWEST_VIDEOS, pool.sizes // _SHARE_OF_VIDEOS)
    if classes < way or (pool.sizes - each).min() < shot + queries:
        return None
    mask = np.zeros(len(pool.ids), dtype=bool)
    for start, size, count in zip(pool.starts, pool.sizes, each, strict=True):
        mask[start + _first_by_hash(pool.ids[start : start + size], int(count))] = True
    return "held-out videos", mask


def _first_by_hash(names: tuple[str, ...], count: int) -> npt.NDArray[np.int64]:
    """Return the positions of ``count`` of the names, in the order of their hashes."""
    order = sorted(range(len(names)), key=lambda i: digest("clipspm-hold-out-v1", names[i]))
    return np.array(order[:count], dtype=np.int64)
