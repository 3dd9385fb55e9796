"""Describe files of episodes, and check that they are what they claim."""

from typing import Any

import numpy as np

from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.episodes.draw import Episodes, draw
from clipspm.train_heads.episodes.pool import FeatureSource, Pool
from clipspm.train_heads.episodes.sources import sources


def summary(episodes: Episodes) -> dict[str, Any]:
    """Return hash, settings and sizes as plain values."""
    return {
        "hash": episodes.hash,
        "hash_full": episodes.full_hash,
        "episodes": len(episodes),
        **episodes.spec.as_dict(),
        "classes": len(np.unique(episodes.classes)),
        "videos": len(np.unique(np.concatenate([episodes.support, episodes.query], axis=1))),
    }


def one_episode(episodes: Episodes, number: int) -> dict[str, dict[str, list[str]]]:
    """Return the ids of the supports and queries of one episode, by class name."""
    if not 0 <= number < len(episodes):
        raise UsageError(f"there is no episode {number}: the file holds 0..{len(episodes) - 1}")
    one = episodes[number : number + 1]
    found = {}
    for c, row in enumerate(one.classes[0]):
        parts = {
            "supports": one.support[0][one.support_labels[0] == c],
            "queries": one.query[0][one.query_labels[0] == c],
        }
        found[one.class_names[row]] = {k: [one.video_ids[v] for v in videos] for k, videos in parts.items()}
    return found


def check_claims(episodes: Episodes, pool: Pool) -> None:
    """Raise :class:`ClipspmError` if episodes, on ``pool``, violate their classes or source rule."""
    episodes.check_classes(pool)
    if episodes.spec.sources:
        group = sources(pool, episodes.spec.sources)
        shared = (group[episodes.query][:, :, None] == group[episodes.support][:, None]).any((1, 2))
        if shared.any():
            raise ClipspmError(f"episode {int(shared.argmax())} has a query from the source of a support")


def problems(episodes: Episodes, cache: FeatureSource | None = None) -> list[str]:
    """Return what is wrong, a line each: with the lists themselves, and as episodes of ``cache``."""
    try:
        episodes.check()
    except ValueError as error:
        return [str(error)]
    if cache is None:
        return []
    spec = episodes.spec
    if cache.spec.dataset != spec.dataset:
        return [f"the episodes are of {spec.dataset}, but {cache.path} holds {cache.spec.dataset}"]
    pool = Pool.from_cache(cache, spec.split)
    try:
        here = episodes.on(pool)
        check_claims(here, pool)
    except ClipspmError as error:
        return [str(error)]
    if draw(spec, pool, len(here)).full_hash != here.full_hash:
        return [
            f"{cache.path} gives other episodes for these settings: its videos or classes are not the same"
        ]
    return []
