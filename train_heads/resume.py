"""Find the cache that a run was trained on, and the unfinished run of a request."""

from collections.abc import Sequence
from pathlib import Path

from clipspm.cache.home import runs_dir
from clipspm.cache.reader import open_cache
from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.pool import Split
from clipspm.train_heads.runs import Run


def as_trained(
    run: Run,
    path: str | Path | None = None,
    splits: Sequence[Split] = ("test",),
    *,
    allow_partial: bool = False,
    device: str = "auto",
) -> Data:
    """Open the cache of ``run`` (or the one at ``path``), under the class splits that it was trained with.

    A cache of other classes keeps its own splits, and so does every cache for an imported run. Unless
    ``allow_partial``, a cache whose ``splits`` are incomplete is refused.
    """
    if run.imported and path is None:
        raise UsageError(f"{run.path} was imported and has no cache of its own: give one with --cache PATH")
    try:
        cache = open_cache(path or run.cache["path"])
    except ClipspmError as error:
        if path is not None:
            raise
        raise ClipspmError(f"{run.path} needs its cache (or another with --cache): {error}") from error
    own = run.cache["class_splits"]
    other = cache.class_splits == own or set(cache.class_names) != set(own)
    under = cache if other else cache.with_splits(own)
    return Data(under.require(splits, allow_partial=allow_partial), device)


def unfinished_run(config: TrainConfig, data: Data) -> Path:
    """Return the newest unfinished run under the home that has these settings and this cache.

    ``config``: already fitted to the cache. Raises :class:`UsageError` that says what is there instead.
    """
    same, ended, others = [], [], []
    for folder in sorted(runs_dir().iterdir()) if runs_dir().is_dir() else []:
        try:
            run = Run.open(folder)
            here = (data.spec.fingerprint, data.content)
            if run.imported or (run.cache["fingerprint"], run.cache["content"]) != here or run.busy():
                continue
            if run.config.identity != config.identity:
                others += [] if run.finished else [run]
            elif run.finished:
                ended.append(run)
            else:
                same.append(run)
        except ClipspmError:
            continue
    if same:
        return max(same, key=Run.changed).path
    if ended:
        newest = max(ended, key=Run.changed).path
        raise UsageError(f"nothing to resume: {newest} has these settings and is finished")
    if others:
        newest_other = max(others, key=Run.changed)
        differs = "; ".join(newest_other.config.differences(config))
        raise UsageError(
            f"no unfinished run has these settings; {newest_other.path} is unfinished and differs (there / "
            f"here): {differs}. To go on with it: --resume --run-dir {newest_other.path}"
        )
    raise UsageError(f"nothing to resume: no run on this cache under {runs_dir()}; leave --resume out")
