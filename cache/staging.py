"""A finished shard on its way into a cache: written aside, flushed, checksummed, then renamed into view.

Any number of processes on any number of machines may stage shards of one cache; its one writer takes them in
(:meth:`clipspm.cache.writer.CacheWriter.adopt`). A staged shard is whole, or it is not there. The folder that
shards wait in is named by what they are shards of (:func:`place_for`): what a worker of an earlier run leaves
there late never becomes data of another.
"""

import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipspm.cache.disk import make_folder, remove, room_on, sync, sync_all
from clipspm.cache.ledger import Entry, read_ledger, values_digest
from clipspm.cache.spec import SPEC, CacheSpec, VideoRecord
from clipspm.cache.store import STAGED, check_regular, layer_key
from clipspm.errors import ClipspmError

_ENTRY = "entry.jsonl"


def place_for(cache: Path, spec: CacheSpec, planned: Sequence[tuple[str, str, Any, Any]], size: int) -> Path:
    """Where shards of ``size`` of the ``planned`` videos (id, path, class name, split) wait."""
    facts = json.dumps([spec.fingerprint, size, [video[:2] for video in planned]])
    return cache / STAGED / hashlib.sha256(facts.encode("ascii")).hexdigest()[:16]


def stage(
    place: Path, shard: int, outcomes: Mapping[int, VideoRecord], features: Mapping[str, np.ndarray]
) -> None:
    """Stage a shard of a growing cache at its ``place``: ``features[layer]`` [rows that are ok, V, T, D].

    A shard that is staged already is replaced. Raises :class:`ClipspmError` where the cache is no more, and
    :class:`clipspm.cache.disk.DiskFull`.
    """
    cache = place.parents[1]
    if not (cache / SPEC).is_file():
        raise ClipspmError(f"{cache} is not growing any more: this is a worker of a run that is over")
    target = place / str(shard)
    aside = place / f".{shard}.{socket.gethostname()}.{os.getpid()}"
    with room_on(cache):
        remove(aside)
        make_folder(aside)
        for layer, values in features.items():
            layer_key(layer)
            np.save(aside / f"{layer}.npy", values, allow_pickle=False)
        sums = {layer: values_digest(values) for layer, values in features.items()}
        (aside / _ENTRY).write_bytes(Entry.of(shard, outcomes, sums).to_line())
        sync_all(aside)
        remove(target)
        try:
            aside.rename(target)
        except OSError:
            if not is_staged(place, shard):
                raise
            remove(aside)  # another worker staged the same in the meantime
        sync(place)


def staged(place: Path) -> list[int]:
    """The shards that wait to be taken in."""
    if place.is_symlink() or place.parent.is_symlink() or not place.is_dir():
        return []
    names = [p.name for p in place.iterdir() if not p.is_symlink()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def is_staged(place: Path, shard: int) -> bool:
    """Whether the shard waits to be taken in."""
    return (place / str(shard) / _ENTRY).is_file()


def read_staged(place: Path, shard: int) -> tuple[Entry, dict[str, np.ndarray]]:
    """What :func:`stage` wrote; anything else is an error."""
    folder = place / str(shard)
    try:
        check_regular(folder / _ENTRY)
        entries, _ = read_ledger((folder / _ENTRY).read_bytes())
        entry, features = entries[0], {}
        for layer in map(str, entry.sha256):
            layer_key(layer)
            check_regular(folder / f"{layer}.npy")
            features[layer] = np.load(folder / f"{layer}.npy", allow_pickle=False)
    except Exception as error:  # damaged bytes can fail in any way
        raise DamagedStage(f"{folder} is damaged: run the same command again") from error
    if entry.shard != shard or any(values_digest(v) != entry.sha256[k] for k, v in features.items()):
        raise DamagedStage(f"{folder} is damaged: run the same command again")
    return entry, features


class DamagedStage(ClipspmError):
    """A staged shard that is not what was staged; it can be forgotten and done again."""


def unstage(place: Path, shard: int) -> None:
    """Forget a staged shard."""
    remove(place / str(shard))
