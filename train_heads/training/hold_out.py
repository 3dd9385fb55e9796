"""What of the training set is set aside to choose the weights, where a data set has no validation classes.

Training long without a choice was seen to hurt on real clips (docs/recipes.md). Whole classes are the better
judge of unseen ones; where there are few, videos of every class have to do.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.episodes.random import digest

#: what chose the weights of a run
Selection = Literal["val", "held-out classes", "held-out videos", "none"]

_CLASSES_LEFT = 8  # at least so many classes go on training, or no class is set aside
_SHARE_OF_CLASSES, _SHARE_OF_VIDEOS = 5, 4  # one in so many
_FEWEST_CLASSES, _FEWEST_VIDEOS = 2, 3  # that something can be chosen on


def set_aside(
    pool: Pool, *, way: int, shot: int, queries: int
) -> tuple[Selection, npt.NDArray[np.bool_]] | None:
    """What to hold out of a training ``pool``, and which of its N videos that is, [N]; None: it has too few.

    The choice depends on the names of classes and videos only. ``way``, ``shot`` and ``queries`` are those of
    the training episodes, which stay possible.
    """
    classes = len(pool.names)
    held = max(_FEWEST_CLASSES, classes // _SHARE_OF_CLASSES)
    if classes - held >= max(way, _CLASSES_LEFT):
        chosen = _first(pool.names, held)
        if pool.sizes[chosen].min() > 1:
            return "held-out classes", np.isin(pool.labels, chosen)
    each = np.maximum(_FEWEST_VIDEOS, pool.sizes // _SHARE_OF_VIDEOS)
    if classes < way or (pool.sizes - each).min() < shot + queries:
        return None
    mask = np.zeros(len(pool.ids), dtype=bool)
    for start, size, count in zip(pool.starts, pool.sizes, each, strict=True):
        mask[start + _first(pool.ids[start : start + size], int(count))] = True
    return "held-out videos", mask


def _first(names: tuple[str, ...], count: int) -> npt.NDArray[np.int64]:
    """The places of ``count`` of the names, in an order that says nothing of them."""
    order = sorted(range(len(names)), key=lambda i: digest("clipspm-hold-out-v1", names[i]))
    return np.array(order[:count], dtype=np.int64)
