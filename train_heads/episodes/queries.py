"""Pick queries that are not balanced over classes, or that share no source with the supports.

Shapes: n episodes, C ways, S supports, Q queries of an episode, M videos of the largest class.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from clipspm.errors import UsageError
from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.episodes.random import UInts, below, urn
from clipspm.train_heads.episodes.sources import sources

Ints = npt.NDArray[np.int64]

_ROWS = 500  # episodes at a time: masks take n * C * M bytes


class Request(Protocol):
    """The fields read of an :class:`~clipspm.train_heads.episodes.draw.EpisodeSpec`."""

    @property
    def way(self) -> int: ...
    @property
    def queries(self) -> int: ...
    @property
    def dirichlet(self) -> int: ...
    @property
    def sources(self) -> str: ...


def words_needed(spec: Request) -> int:
    """Return the number of 64-bit words per episode that :func:`pick_queries` needs."""
    most = spec.way * spec.queries
    return most + spec.way * most if spec.dirichlet else most


def pick_queries(spec: Request, pool: Pool, classes: Ints, support: Ints, raw: UInts) -> tuple[Ints, Ints]:
    """Pick queries [n, Q], class by class; return them and how many each class has, [n, C].

    ``classes`` [n, C], ``support`` [n, S] rows of ``pool``, ``raw`` [n, :func:`words_needed`]. Each word
    picks one of the class's videos that are left, without supports and videos of their sources. Raises
    :class:`UsageError` if too few are left.
    """
    group = sources(pool, spec.sources) if spec.sources else None
    parts = [
        _pick(spec, pool, group, classes[part], support[part], raw[part], at)
        for at in range(0, max(len(classes), 1), _ROWS)
        for part in (slice(at, at + _ROWS),)
    ]
    query, counts = zip(*parts, strict=True)
    return np.concatenate(query), np.concatenate(counts)


def _pick(
    spec: Request, pool: Pool, group: Ints | None, classes: Ints, support: Ints, raw: UInts, first: int
) -> tuple[Ints, Ints]:
    n, way = classes.shape
    total = way * spec.queries
    place = pool.starts[classes][..., None] + np.arange(int(pool.sizes.max()))  # [n, C, M]
    free = np.arange(place.shape[-1]) < pool.sizes[classes][..., None]
    place = np.where(free, place, 0)
    for one in support.T:
        taken = place == one[:, None, None] if group is None else group[place] == group[one][:, None, None]
        free &= ~taken
    left = free.sum(-1)
    if spec.dirichlet:
        short = left.sum(1) < total
        counts = np.zeros_like(left) if short.any() else urn(raw[:, :total], left, spec.dirichlet)
        raw = raw[:, total:]
    else:
        counts = np.full_like(left, spec.queries)
        short = (left < counts).any(1)
    if short.any():
        row = int(short.argmax())
        c = int(left[row].argmin())
        raise UsageError(
            f"{pool.dataset}: episode {first + row} leaves {left[row, c]} videos of class "
            f"{pool.names[classes[row, c]]!r} that may be queries; ask for fewer queries or shots"
        )
    most = int(counts.max(initial=0))
    words = raw.reshape(n, way, -1)[..., :most]
    found = np.zeros((n, way, most), dtype=np.int64)
    for i in range(most):
        rank = below(words[..., i], np.maximum(left - i, 1))
        at = (free.cumsum(-1) > rank[..., None]).argmax(-1)
        found[..., i] = np.take_along_axis(place, at[..., None], -1)[..., 0]
        np.put_along_axis(free, at[..., None], False, -1)
    wanted = np.arange(most) < counts[..., None]
    return found[wanted].reshape(n, total), counts
