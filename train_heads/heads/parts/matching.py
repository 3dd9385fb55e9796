"""Distances between class prototypes and queries, chosen by name: ``MATCHERS`` and ``matcher(name)``."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from clipspm.train_heads.heads.parts.otam import frame_distance, otam_distance

#: (prototypes [E, C, T, D], queries [E, Q, T, D]) -> distances [E, Q, C]
Matcher = Callable[[Tensor, Tensor], Tensor]


def pairwise_frames(prototypes: Tensor, queries: Tensor) -> Tensor:
    """Return the cosine distance of every query frame to every prototype frame, [E, Q, C, Tq, Tc]."""
    e, c, tc, _ = prototypes.shape
    q, tq = queries.shape[1:3]
    dist = frame_distance(queries.flatten(1, 2), prototypes.flatten(1, 2))
    return dist.view(e, q, tq, c, tc).transpose(2, 3)


def otam(prototypes: Tensor, queries: Tensor, *, smoothing: float = 0.5) -> Tensor:
    """Return the bidirectional ordered temporal alignment distance (arXiv 1906.11415)."""
    return otam_distance(pairwise_frames(prototypes, queries), smoothing=smoothing, bound=2.0)


def bimhm(prototypes: Tensor, queries: Tensor) -> Tensor:
    """Return the bidirectional mean Hausdorff distance (arXiv 2204.13423, section 3.3), blind to order.

    Each frame is compared with its nearest one, and the two directions are added. Smaller than OTAM's values
    by a factor of about T.
    """
    dist = pairwise_frames(prototypes, queries)
    return dist.amin(-1).mean(-1) + dist.amin(-2).mean(-1)


def mean_cosine(prototypes: Tensor, queries: Tensor) -> Tensor:
    """Return the mean cosine distance of the frames at the same index."""
    return pairwise_frames(prototypes, queries).diagonal(dim1=-2, dim2=-1).mean(-1)


MATCHERS: dict[str, Callable[..., Tensor]] = {"otam": otam, "bimhm": bimhm, "mean-cosine": mean_cosine}


def matcher(name: str, *, smoothing: float = 0.5) -> Matcher:
    """Return the matcher called ``name``; ``smoothing`` is OTAM's. ValueError lists the names."""
    if name not in MATCHERS:
        raise ValueError(f"matcher: found {name!r}; needed one of {', '.join(MATCHERS)}")
    return partial(otam, smoothing=smoothing) if name == "otam" else MATCHERS[name]
