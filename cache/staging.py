"""Staging of finished shards: written to a temporary folder, checksummed, flushed, then renamed.

Any number of processes on any number of machines may stage shards of one cache; its only writer takes them in
(:meth:`clipspm.cache.writer.CacheWriter.adopt`). A staged shard is complete or absent. The name of the
staging folder is a digest of spec, shard size and planned videos (:func:`place_for`), so that a shard that
arrives late from an earlier run is never taken into a different cache.
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
from clipspm.cache.store import STAGED, check_regular, layer_file
from clipspm.errors import ClipspmError

_ENTRY = "entry.jsonl"


def place_for(cache: Path, spec: CacheSpec, planned: Sequence[tuple[str, str, Any, Any]], size: int) -> Path:
    """The staging folder for shards of ``size`` of the ``planned`` videos (id, path, class name, split)."""
    facts = json.dumps([spec.fingerprint, size, [video[:2] for video in planned]])
    return cache / STAGED / hashlib.sha256(facts.encode("ascii")).hexdigest()[:16]


def stage(
    place: Path, shard: int, outcomes: Mapping[int, VideoRecord], features: Mapping[str, np.ndarray]
) -> None:
    """Stage a shard in the staging folder ``place``, replacing an earlier one.

    ``features[layer]`` [rows with status ok, V, T, D]. Raises :class:`ClipspmError` if the cache no longer
    exists, and :class:`clipspm.cache.disk.DiskFull`.
    """
    cache = place.parents[1]
    if not (cache / SPEC).is_file():
        raise ClipspmError(f"{cache} no longer exists: the run of this worker is over")
    target = place / str(shard)
    aside = place / f".{shard}.{socket.gethostname()}.{os.getpid()}"
    with room_on(cache):
        remove(aside)
        make_folder(aside)
        for layer, values in features.items():
            np.save(aside / f"{layer_file(layer)}.npy", values, allow_pickle=False)
        sums = {layer: values_digest(values) for layer, values in features.items()}
        (aside / _ENTRY).write_bytes(Entry.of(shard, outcomes, sums).to_line())
        sync_all(aside)
        remove(target)
        try:
            aside.rename(target)
        except OSError:
            if not is_staged(place, shard):
                raise
            remove(aside)  # another worker has staged the same shard meanwhile
        sync(place)


def staged(place: Path) -> list[int]:
    """The numbers of the staged shards, sorted."""
    if place.is_symlink() or place.parent.is_symlink() or not place.is_dir():
        return []
    names = [p.name for p in place.iterdir() if not p.is_symlink()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def is_staged(place: Path, shard: int) -> bool:
    """Whether the shard is staged."""
    return (place / str(shard) / _ENTRY).is_file()


def read_staged(place: Path, shard: int) -> tuple[Entry, dict[str, np.ndarray]]:
    """Read what :func:`stage` wrote; raises :class:`DamagedStage` if it is damaged."""
    folder = place / str(shard)
    try:
        check_regular(folder / _ENTRY)
        entries, _ = read_ledger((folder / _ENTRY).read_bytes())
        entry, features = entries[0], {}
        for layer in map(str, entry.sha256):
            file = folder / f"{layer_file(layer)}.npy"
            check_regular(file)
            features[layer] = np.load(file, allow_pickle=False)
    except Exception as error:  # damaged bytes can raise anything
        raise DamagedStage(f"{folder} is damaged: run the same command again") from error
    if entry.shard != shard or any(values_digest(v) != entry.sha256[k] for k, v in features.items()):
        raise DamagedStage(f"{folder} is damaged: run the same command again")
    return entry, features


class DamagedStage(ClipspmError):
    """A damaged staged shard; it can be removed and extracted again."""


def unstage(place: Path, shard: int) -> None:
    """Remove a staged shard."""
    remove(place / str(shard))
