"""A finished shard on its way into a cache: written aside, flushed, checksummed, then renamed into view.

Any number of processes on any number of machines may stage shards of one cache; its one writer takes them in
(:meth:`clipspm.cache.writer.CacheWriter.adopt`). A staged shard is whole, or it is not there.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clipspm.cache.disk import remove, room_on, sync
from clipspm.cache.errors import ClipspmError
from clipspm.cache.ledger import Entry, read_ledger, values_digest
from clipspm.cache.spec import VideoRecord
from clipspm.cache.store import STAGED, layer_key

_ENTRY = "entry.jsonl"


def stage(
    cache: Path, shard: int, outcomes: Mapping[int, VideoRecord], features: Mapping[str, np.ndarray]
) -> None:
    """Stage a shard of the growing Zarr cache ``cache``: ``features[layer]`` [rows that are ok, V, T, D].

    A shard that is staged already is replaced. Raises :class:`clipspm.cache.disk.DiskFull`.
    """
    target = cache / STAGED / str(shard)
    aside = cache / STAGED / f".{shard}.{socket.gethostname()}.{os.getpid()}"
    with room_on(cache):
        remove(aside)
        aside.mkdir(parents=True)
        for layer, values in features.items():
            layer_key(layer)
            with (aside / f"{layer}.npy").open("wb") as file:
                np.save(file, values, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        sums = {layer: values_digest(values) for layer, values in features.items()}
        with (aside / _ENTRY).open("wb") as file:
            file.write(Entry.of(shard, outcomes, sums).to_line())
            file.flush()
            os.fsync(file.fileno())
        sync(aside)
        remove(target)
        try:
            aside.rename(target)
        except OSError:
            if not is_staged(cache, shard):
                raise
            remove(aside)  # another worker staged the same in the meantime
        sync(target.parent)


def staged(cache: Path) -> list[int]:
    """The shards that wait to be taken in."""
    folder = cache / STAGED
    inside = folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ()
    names = [p.name for p in inside if not p.is_symlink()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def is_staged(cache: Path, shard: int) -> bool:
    """Whether the shard waits to be taken in."""
    return (cache / STAGED / str(shard) / _ENTRY).is_file()


def read_staged(cache: Path, shard: int) -> tuple[Entry, dict[str, np.ndarray]]:
    """What :func:`stage` wrote; anything else is an error."""
    folder = cache / STAGED / str(shard)
    try:
        entries, _ = read_ledger((folder / _ENTRY).read_bytes())
        entry = entries[0]
        features = {
            layer: np.load(folder / f"{layer}.npy", allow_pickle=False) for layer in map(str, entry.sha256)
        }
    except Exception as error:  # damaged bytes can fail in any way
        raise DamagedStage(f"{folder} is damaged: run the same command again") from error
    if entry.shard != shard or any(values_digest(v) != entry.sha256[k] for k, v in features.items()):
        raise DamagedStage(f"{folder} is damaged: run the same command again")
    return entry, features


class DamagedStage(ClipspmError):
    """A staged shard that is not what was staged; it can be forgotten and done again."""


def unstage(cache: Path, shard: int) -> None:
    """Forget a staged shard."""
    remove(cache / STAGED / str(shard))
