"""The two containers of a cache, behind one small interface.

A Zarr directory is what is written, shard by shard; an HDF5 file is the same content in one piece.

Layout of the directory (the HDF5 file holds ``spec.json``, ``classes.json`` and the merged
``records.jsonl`` as byte arrays of the same names)::

    spec.json       the CacheSpec with its fingerprint
    classes.json    [[class name, split], ...] in the order of the rows of ``text``
    videos.jsonl    the planned videos, one a line, in row order
    ledger.jsonl    one line per committed shard, with the outcome of each of its rows
    zarr.json, layers/<name>, text      arrays [N, V, T, D] and [C, P, D]
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import h5py
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from clipspm.cache.errors import ClipspmError
from clipspm.cache.spec import CacheSpec, VideoRecord

SPEC, CLASSES, VIDEOS, LEDGER, RECORDS = (
    "spec.json",
    "classes.json",
    "videos.jsonl",
    "ledger.jsonl",
    "records.jsonl",
)
TEXT = "text"


def layer_key(layer: str) -> str:
    """Where a layer's array lives inside a container."""
    return f"layers/{layer}"


class Store(Protocol):
    """Read access to a cache container."""

    def spec(self) -> CacheSpec:
        """The cache's spec."""
        ...

    def classes(self) -> list[tuple[str, str]]:
        """Class names and their splits."""
        ...

    def records(self) -> list[VideoRecord]:
        """One record per planned video, in row order."""
        ...

    def array(self, key: str) -> np.ndarray:
        """A whole array in memory."""
        ...


def write_atomically(path: Path, data: bytes) -> None:
    """Write aside, flush to disk, rename: a reader sees the old content or the new one."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def dump_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """JSON lines, ASCII only, so that any file name survives."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")


def load_lines(data: bytes) -> list[Any]:
    """Read :func:`dump_lines`; a torn last line (a killed writer) is not data and is left out."""
    lines = data.split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


class ZarrStore:
    """A cache as a Zarr directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def spec(self) -> CacheSpec:
        return CacheSpec.from_json((self.path / SPEC).read_text())

    def classes(self) -> list[tuple[str, str]]:
        return [(name, split) for name, split in json.loads((self.path / CLASSES).read_text())]

    def records(self) -> list[VideoRecord]:
        records = [VideoRecord.from_dict(row) for row in load_lines((self.path / VIDEOS).read_bytes())]
        for entry in self.ledger():
            for row, outcome in entry["rows"].items():
                planned = records[int(row)]
                records[int(row)] = VideoRecord.from_dict({**asdict(planned), **outcome})
        return records

    def ledger(self) -> list[dict[str, Any]]:
        """One entry per commit, in order."""
        path = self.path / LEDGER
        return load_lines(path.read_bytes()) if path.exists() else []

    def group(self) -> zarr.Group:
        return zarr.open_group(str(self.path), mode="r+")

    def array(self, key: str) -> np.ndarray:
        found = zarr.open_group(str(self.path), mode="r")[key]
        return np.asarray(cast("zarr.Array[Any]", found)[...])

    def create(self, spec: CacheSpec, videos: int, text: np.ndarray, shard_size: int) -> None:
        """Lay out empty arrays: one chunk per shard of videos, each with its checksum."""
        group = zarr.open_group(str(self.path), mode="a")
        for layer in spec.layers:
            group.create_array(
                layer_key(layer),
                shape=(videos, spec.views, spec.frames, spec.dims[layer]),
                chunks=(max(1, min(shard_size, videos)), spec.views, spec.frames, spec.dims[layer]),
                dtype="float16" if spec.store_dtype == "fp16" else "float32",
                compressors=[Crc32cCodec()],
                overwrite=True,
            )
        self.write_text(text)

    def write_text(self, text: np.ndarray) -> None:
        """Replace the text features, float32 [C, P, D]."""
        group = zarr.open_group(str(self.path), mode="a")
        array = group.create_array(
            TEXT,
            shape=text.shape,
            chunks=tuple(max(1, n) for n in text.shape),
            dtype="float32",
            compressors=[Crc32cCodec()],
            overwrite=True,
        )
        array[...] = text


class Hdf5Store:
    """A cache as one HDF5 file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _bytes(self, key: str) -> bytes:
        return self.array(key).tobytes()

    def spec(self) -> CacheSpec:
        return CacheSpec.from_json(self._bytes(SPEC).decode())

    def classes(self) -> list[tuple[str, str]]:
        return [(name, split) for name, split in json.loads(self._bytes(CLASSES))]

    def records(self) -> list[VideoRecord]:
        return [VideoRecord.from_dict(row) for row in load_lines(self._bytes(RECORDS))]

    def array(self, key: str) -> np.ndarray:
        with h5py.File(self.path, "r") as file:
            found = file[key]
            if not isinstance(found, h5py.Dataset):
                raise KeyError(key)
            return np.asarray(found[...])

    @staticmethod
    def write(path: Path, source: Store, shard_size: int = 256) -> None:
        """Copy any store into one HDF5 file: written aside, flushed, renamed."""
        aside = path.with_name(path.name + ".new")
        spec = source.spec()
        with h5py.File(aside, "w") as file:
            blobs = {
                SPEC: spec.to_json().encode(),
                CLASSES: json.dumps(source.classes()).encode(),
                RECORDS: dump_lines(r.to_dict() for r in source.records()),
            }
            for key, blob in blobs.items():
                file.create_dataset(key, data=np.frombuffer(blob, np.uint8))
            for key in [*map(layer_key, spec.layers), TEXT]:
                data = source.array(key)
                chunks = (max(1, min(shard_size, len(data))), *data.shape[1:])
                file.create_dataset(
                    key, data=data, chunks=chunks if data.size else None, fletcher32=bool(data.size)
                )
            file.flush()
        with aside.open("rb+") as raw:
            os.fsync(raw.fileno())
        aside.replace(path)


def find_store(path: Path) -> ZarrStore | Hdf5Store:
    """The container at ``path``; one clear error if there is none."""
    if not path.exists():
        raise ClipspmError(f"no cache at {path}: run `clipspm extract`, or see `clipspm cache list`")
    if path.is_dir():
        if not (path / SPEC).is_file():
            raise ClipspmError(f"{path} is a folder but not a cache: it has no {SPEC}")
        return ZarrStore(path)
    try:
        readable = h5py.is_hdf5(path)
    except OSError as error:
        raise ClipspmError(f"cannot read {path}: {error}") from error
    if not readable:
        raise ClipspmError(f"{path} is neither a Zarr folder nor an HDF5 file")
    return Hdf5Store(path)
