"""Check that a cache can give what is asked, before any work starts."""

from collections.abc import Mapping
from dataclasses import replace

from clipspm.errors import UsageError
from clipspm.progress import Say
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.draw import check_frames, check_request
from clipspm.train_heads.episodes.pool import Pool, Split

DEFAULT_QUERIES = 4
DEFAULT_FRAMES = 8


def fit_to_cache(
    config: TrainConfig, pools: Mapping[Split, Pool], cached_frames: int, say: Say
) -> TrainConfig:
    """Fill in ``queries`` and ``frames`` where they are open; refuse what the cache cannot give.

    Checks the training split, and the validation split if it has two classes or more. ``say`` reports what
    was reduced, and warns if the test split is too small for the same request.
    """
    pool = pools["train"]
    queries = config.queries
    if queries is None:
        least = pool.smallest()[1] - config.shots if pool.names else 0
        queries = max(1, min(DEFAULT_QUERIES, least))
        if queries < DEFAULT_QUERIES and least >= 1:
            name, size = pool.smallest()
            say(
                f"{queries} queries per class instead of {DEFAULT_QUERIES}: class {name!r} (train) has "
                f"{size} videos for {config.shots} shots"
            )
    frames = config.frames if config.frames is not None else min(DEFAULT_FRAMES, cached_frames)
    check_frames(cached_frames, frames)
    check_request(pool, way=config.way, shot=config.shots, queries=queries)
    val = pools["val"]
    if len(val.names) >= 2:
        check_request(val, way=min(config.way, len(val.names)), shot=config.shots, queries=1)
    test = pools["test"]  # names and counts only
    if test.names:
        try:
            check_request(test, way=config.way, shot=config.shots, queries=1)
        except UsageError as error:
            say(f"warning: this run cannot be tested as it is trained: {error}")
    return replace(config, queries=queries, frames=frames)
