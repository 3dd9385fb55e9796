"""The two containers of a cache, Zarr and HDF5, behind one interface.

A Zarr directory is written shard by shard; an HDF5 file is a copy of one, made at the end. Both hold, as
files or as byte arrays of the same names::

    spec.json       the CacheSpec with its fingerprint
    classes.json    [[class name, split, videos], ...] in the order of the rows of ``text``, then absent ones
    videos.jsonl    the planned videos, one per line, in row order
    ledger.jsonl    one line per committed shard (:mod:`.ledger`)
    layers/<name>, text      arrays [N, V, T, D] and [C, P, D]; the name as :func:`layer_file` writes it

A finished cache also describes its rows in native attributes (:class:`Facts`) for programs that open it with
plain ``zarr.open`` or ``h5py.File``. This package does not read them.

Reading is safe with untrusted files: nothing is executed, arrays are plain numbers without filters other than
checksums, and symbolic, external and virtual links are refused.
"""

import json
import math
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from clipspm.cache.disk import (
    DiskFull,
    append,
    check_size,
    free_bytes,
    hidden,
    remove,
    size_text,
    sync,
    sync_all,
    write_atomically,
)
from clipspm.cache.ledger import (
    TEXT_SHARD,
    Entry,
    apply,
    digests,
    dump_lines,
    load_lines,
    read_ledger,
    shards,
    values_digest,
)
from clipspm.cache.seal import seal_path
from clipspm.cache.spec import (
    BLOBS,
    CLASSES,
    LEDGER,
    SPEC,
    VIDEOS,
    CacheSpec,
    Plan,
    PlannedClass,
    Split,
    VideoRecord,
)
from clipspm.errors import ClipspmError, plain

TEXT = "text"
#: the metadata file of a Zarr group
GROUP = "zarr.json"
#: the folder of a growing Zarr cache with its staged shards (:mod:`.staging`)
STAGED = "staged"

_LAYER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(:[a-z]+)?")
_DTYPES = ("float16", "float32")
#: the largest metadata file that is read (bytes); the ledger of a million videos has half of it
_MOST_BLOB = 2**30
#: the largest chunk (bytes) that may be absent; Zarr does not store chunks that are all zero
_MOST_ZEROS = 2**30


def layer_file(layer: str) -> str:
    """A layer's name in files: ``8.mean`` for ``8:mean``, as not every system has colons in file names.

    Raises :class:`ClipspmError` for a name that is not safe.
    """
    if not _LAYER_NAME.fullmatch(layer):
        raise ClipspmError(f"{layer!r} is not a layer name")
    return layer.replace(":", ".")


def layer_key(layer: str) -> str:
    """The key of a layer's array in a container: ``layers/`` and :func:`layer_file`."""
    return f"layers/{layer_file(layer)}"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any error while the cache at ``path`` is read into a :class:`ClipspmError` of one line."""
    try:
        yield
    except ClipspmError as error:
        raise error if str(path) in str(error) else ClipspmError(f"{path}: {error}") from error
    except Exception as error:  # damaged bytes can raise anything
        raise ClipspmError(
            f"{path} is damaged and cannot be read as a cache ({plain(error)}); "
            "extract it again with --overwrite"
        ) from error


class DamagedShard(ClipspmError):
    """A shard that does not match its digest or cannot be read; ``why`` says which."""

    def __init__(self, path: Path, layer: str, shard: int, why: str) -> None:
        self.path, self.layer, self.shard, self.why = path, layer, shard, why
        super().__init__(
            f"{path}: shard {shard} of layer {layer} is damaged ({why}); "
            f"`clipspm cache verify {path} --repair` queues it for extraction"
        )

    def __reduce__(self) -> tuple[type["DamagedShard"], tuple[Path, str, int, str]]:
        return DamagedShard, (self.path, self.layer, self.shard, self.why)


class Store(ABC):
    """Read access to a cache container."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def blob(self, name: str) -> bytes:
        """Read one of the metadata files :data:`BLOBS`."""

    @abstractmethod
    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start .. stop-1`` of an array; raises if the container's own checksum does not match."""

    @abstractmethod
    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of an array."""

    @abstractmethod
    def dtype(self, key: str) -> np.dtype[Any]:
        """The type of an array's values."""

    @abstractmethod
    def chunks(self, key: str) -> tuple[int, ...]:
        """The shape of an array's chunks."""

    @abstractmethod
    def stored(self, key: str, number: int) -> int:
        """Stored bytes of a chunk: values and checksum, or 0 if it is absent because it is all zeros."""

    @abstractmethod
    def map_rows(self, key: str, number: int, rows: int) -> np.ndarray:
        """Memory-map the first ``rows`` rows of chunk ``number`` of an array, without checking them."""

    @property
    @abstractmethod
    def shard_size(self) -> int:
        """Videos per shard."""

    def array(self, key: str) -> np.ndarray:
        """Read an array that consists of one chunk."""
        return self.chunk(key, 0, range(self.shape(key)[0]))

    def chunk(self, key: str, number: int, rows: range) -> np.ndarray:
        """Read chunk ``number``, which holds ``rows``.

        Raises ValueError, before allocating memory, if the container holds fewer bytes than its shape needs.
        """
        chunks = self.chunks(key)
        promised, held = math.prod(chunks) * self.dtype(key).itemsize, self.stored(key, number)
        if held not in (0, promised + 4) or (held == 0 and promised > _MOST_ZEROS):
            raise ValueError(f"chunk {number} has {held} bytes of {promised + 4}")
        return self.rows(key, rows.start, rows.stop)

    def spec(self) -> CacheSpec:
        """The settings that the features depend on."""
        return CacheSpec.from_json(self.blob(SPEC).decode())

    def classes(self) -> list[PlannedClass]:
        """(name, split, number of videos when complete) of each class, in the order of the text rows."""
        return [(name, split, int(count)) for name, split, count in json.loads(self.blob(CLASSES))]

    def planned(self) -> list[tuple[str, str, str, Split]]:
        """The planned videos: id, path, class name, split."""
        rows = load_lines(self.blob(VIDEOS))
        return [(row["id"], row["path"], row["class_name"], row["split"]) for row in rows]

    def entries(self) -> list[Entry]:
        """The ledger's entries; raises :class:`ClipspmError` if a line is damaged."""
        entries, damaged = read_ledger(self.blob(LEDGER))
        if damaged:
            lines = ", ".join(map(str, damaged[:5]))
            raise ClipspmError(
                f"the ledger is damaged (line {lines}): `clipspm cache verify {self.path}` says what is "
                "lost; with --repair, that is queued for extraction"
            )
        return entries

    def records(self) -> list[VideoRecord]:
        """One record per planned video, in row order."""
        return apply(self.entries(), self.planned())

    def shards(self) -> list[range]:
        """The rows of each shard."""
        layer = layer_key(self.spec().layers[0])
        return shards(self.shape(layer)[0], self.shard_size)

    def shard(self, layer: str, number: int, rows: range, digest: str | None) -> np.ndarray:
        """All rows of a shard, [rows, V, T, D]; raises :class:`DamagedShard` if ``digest`` does not match."""
        try:
            block = self.chunk(layer_key(layer), number, rows)
        except Exception as error:  # damaged bytes can raise anything
            raise DamagedShard(self.path, layer, number, plain(error)) from error
        if values_digest(block) != digest:
            raise DamagedShard(self.path, layer, number, "it does not match its digest")
        return block


@dataclass(frozen=True)
class Facts:
    """A description of the rows, for programs that know only Zarr or HDF5.

    ``class_names`` and ``class_splits`` [C] describe the rows of ``text``, ``video_ids`` and ``labels`` [N]
    those of each layer. A label is a row of ``text``, or -1 if the video failed or has not been read yet.
    """

    fingerprint: str
    class_names: list[str]
    class_splits: list[str]
    video_ids: list[str]
    labels: list[int]

    @classmethod
    def of(cls, store: Store) -> "Facts":
        """Collect the facts of a cache."""
        classes = store.classes()[: store.shape(TEXT)[0]]
        rows = {name: row for row, (name, _, _) in enumerate(classes)}
        records = store.records()
        return cls(
            store.spec().fingerprint,
            list(rows),
            [split for _, split, _ in classes],
            [video.id for video in records],
            [rows[video.class_name] if video.status == "ok" else -1 for video in records],
        )


class ZarrStore(Store):
    """A cache as a Zarr directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._arrays: dict[tuple[str, str], zarr.Array[Any]] = {}

    def blob(self, name: str) -> bytes:
        file = self.path / name
        self._refuse_links(file)
        if name == LEDGER and not file.exists():
            return b""
        check_size(file, _MOST_BLOB)
        return file.read_bytes()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._open(key).shape

    def dtype(self, key: str) -> np.dtype[Any]:
        return np.dtype(self._open(key).dtype)

    def chunks(self, key: str) -> tuple[int, ...]:
        return self._open(key).chunks

    def stored(self, key: str, number: int) -> int:
        file = self._chunk_file(key, number)
        return file.stat().st_size if file.exists() else 0

    def map_rows(self, key: str, number: int, rows: int) -> np.ndarray:
        array = self._open(key)
        shape = (rows, *array.shape[1:])
        file = self._chunk_file(key, number)
        return np.memmap(file, self.dtype(key).newbyteorder("<"), "r", shape=shape)

    def _chunk_file(self, key: str, number: int) -> Path:
        return self.path.joinpath(key, "c", str(number), *["0"] * (len(self.shape(key)) - 1))

    @property
    def shard_size(self) -> int:
        return max(1, self._open(layer_key(self.spec().layers[0])).chunks[0])

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        return np.asarray(self._open(key)[start:stop])

    def write_rows(self, key: str, start: int, stop: int, values: np.ndarray) -> None:
        """Write one shard of an array and flush it to disk."""
        array = self._open(key, mode="r+")
        array[start:stop] = values
        chunks = self.path / key / "c"
        if (chunk := chunks / str(start // array.chunks[0])).exists():  # Zarr does not store all-zero chunks
            sync_all(chunk)
        for folder in (chunks, chunks.parent):
            if folder.exists():
                sync(folder)

    def _open(self, key: str, mode: str = "r") -> "zarr.Array[Any]":
        """Open an array; it is validated the first time."""
        if (key, mode) not in self._arrays:
            self._arrays[key, mode] = self._open_checked(key, mode)
        return self._arrays[key, mode]

    def _open_checked(self, key: str, mode: str) -> "zarr.Array[Any]":
        folder = self.path / key
        self._refuse_links(folder)
        for place, folders, files in os.walk(folder):
            for name in folders + files:
                check_regular(Path(place, name))
        about = json.loads((folder / "zarr.json").read_bytes())
        codecs = [codec["name"] for codec in about["codecs"]]
        if about["data_type"] not in _DTYPES or not set(codecs) <= {"bytes", "crc32c"}:
            kind = f"{about['data_type']}, {', '.join(codecs)}"
            raise ClipspmError(f"{folder} is not an array of a cache ({kind})")
        found = zarr.open_array(LocalStore(folder), mode=cast(Any, mode), zarr_format=3)
        return cast("zarr.Array[Any]", found)

    def _refuse_links(self, path: Path) -> None:
        inside = path.relative_to(self.path)
        for part in (inside, *inside.parents[:-1]):
            check_regular(self.path / part)

    def create(self, spec: CacheSpec, plan: Plan, text: np.ndarray, shard_size: int) -> None:
        """Create an empty cache in an empty folder, with one checksummed chunk per shard and layer."""
        group = zarr.open_group(LocalStore(self.path), mode="a")
        videos = len(plan.videos)
        for layer in spec.layers:
            group.create_array(
                layer_key(layer),
                shape=(videos, spec.views, spec.frames, spec.dims[layer]),
                chunks=(max(1, min(shard_size, videos)), spec.views, spec.frames, spec.dims[layer]),
                dtype="float16" if spec.store_dtype == "fp16" else "float32",
                compressors=[Crc32cCodec()],
            )
        write_atomically(self.path / SPEC, spec.to_json().encode())
        write_atomically(self.path / LEDGER, b"")
        self.write_plan(plan, text)
        sync_all(self.path)

    def write_plan(self, plan: Plan, text: np.ndarray) -> None:
        """Write videos, classes and text (float32 [C, P, D]) if they have changed.

        Undamaged text of the same classes is kept: another device may compute different last bits.
        """
        keep = ("id", "path", "class_name", "split")
        blobs = {
            VIDEOS: dump_lines({key: getattr(video, key) for key in keep} for video in plan.videos),
            CLASSES: json.dumps(plan.classes(), indent=1).encode("ascii"),
        }
        changed = {name: data for name, data in blobs.items() if not self._holds(name, data)}
        new_text = CLASSES in changed or not self._text_is_whole()
        if changed or new_text:
            self.begin_change()
        if new_text:
            remove(self.path / TEXT)  # first: under new classes, the old text would still match its digest
        for name, data in changed.items():
            write_atomically(self.path / name, data)
        if new_text:
            array = zarr.open_group(LocalStore(self.path), mode="a").create_array(
                TEXT,
                shape=text.shape,
                chunks=tuple(max(1, n) for n in text.shape),
                dtype="float32",
                compressors=[Crc32cCodec()],
            )
            array[...] = text
            self._arrays.clear()
            sync_all(self.path / TEXT)
            sync(self.path)
            append(self.path / LEDGER, Entry.of_text(text).to_line())

    def _text_is_whole(self) -> bool:
        sums = digests(read_ledger(self.blob(LEDGER))[0])
        try:
            return values_digest(self.array(TEXT)) == sums[TEXT_SHARD][TEXT]
        except Exception:  # missing or damaged
            return False

    def _holds(self, name: str, data: bytes) -> bool:
        return (self.path / name).exists() and (self.path / name).read_bytes() == data

    def describe(self) -> None:
        """Write :class:`Facts` as attributes of the group, and the consolidated metadata of all arrays.

        With the latter, Zarr can list the arrays without opening the other files in the folder.
        """
        keys = ["layers", *(layer_key(layer) for layer in self.spec().layers), TEXT]
        inside = {key: json.loads((self.path / key / GROUP).read_bytes()) for key in keys}
        inside["layers"]["consolidated_metadata"] = _consolidated({})
        self._write_group(
            {"attributes": asdict(Facts.of(self)), "consolidated_metadata": _consolidated(inside)}
        )

    def begin_change(self) -> None:
        """Remove what only a finished cache has: its seal and what :meth:`describe` wrote."""
        remove(seal_path(self.path))
        self._write_group({"attributes": {}})
        sync(self.path)

    def _write_group(self, content: dict[str, Any]) -> None:
        data = json.dumps({"zarr_format": 3, "node_type": "group", **content}, indent=1).encode("ascii")
        if not self._holds(GROUP, data):
            remove(seal_path(self.path))
            write_atomically(self.path / GROUP, data)

    def remove_strays(self) -> None:
        """Remove staged shards and temporary files that a killed writer left behind."""
        remove(self.path / STAGED)
        for file in [*self.path.rglob("*.partial"), *self.path.glob("*.new")]:
            remove(file)


def _consolidated(metadata: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": metadata}


def check_regular(path: Path) -> None:
    """Raise :class:`ClipspmError` if ``path`` is a link, pipe or device; a missing path is accepted."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        what = "a link" if stat.S_ISLNK(mode) else "not a regular file"
        raise ClipspmError(f"{path} is {what}: remove it from the cache")


class Hdf5Store(Store):
    """A cache as one HDF5 file."""

    def blob(self, name: str) -> bytes:
        with h5py.File(self.path, "r") as file:
            found = self._dataset(file, name, ("uint8",))
            if found.size > _MOST_BLOB:
                raise ClipspmError(f"{name} has {found.size} bytes, at most {_MOST_BLOB} are read")
            return np.asarray(found[...]).tobytes()

    def shape(self, key: str) -> tuple[int, ...]:
        with h5py.File(self.path, "r") as file:
            return self._dataset(file, key).shape

    def dtype(self, key: str) -> np.dtype[Any]:
        with h5py.File(self.path, "r") as file:
            return np.dtype(self._dataset(file, key).dtype)

    def chunks(self, key: str) -> tuple[int, ...]:
        with h5py.File(self.path, "r") as file:
            found = self._dataset(file, key)
            return tuple(found.chunks or found.shape)

    def stored(self, key: str, number: int) -> int:
        with h5py.File(self.path, "r") as file:
            found = self._dataset(file, key)
            return int(self._chunk_info(found, number).size or 0) if found.chunks else 0  # none: it is empty

    @staticmethod
    def _chunk_info(array: h5py.Dataset, number: int) -> Any:
        return array.id.get_chunk_info_by_coord((number * array.chunks[0], *[0] * (array.ndim - 1)))

    def map_rows(self, key: str, number: int, rows: int) -> np.ndarray:
        with h5py.File(self.path, "r") as file:
            array = self._dataset(file, key)
            place = self._chunk_info(array, number)
            shape, kind = (rows, *array.shape[1:]), np.dtype(array.dtype)
        if place.byte_offset is None:
            raise KeyError(f"{key} has no chunk {number}")
        return np.memmap(self.path, kind, "r", offset=place.byte_offset, shape=shape)

    @property
    def shard_size(self) -> int:
        with h5py.File(self.path, "r") as file:
            found = self._dataset(file, layer_key(self.spec().layers[0]))
            return int((found.chunks or found.shape)[0])

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        with h5py.File(self.path, "r") as file:
            return np.asarray(self._dataset(file, key)[start:stop])

    def _dataset(self, file: h5py.File, key: str, dtypes: tuple[str, ...] = _DTYPES) -> h5py.Dataset:
        place: Any = file
        for part in key.split("/"):
            if not isinstance(place, h5py.Group) or part not in place:
                raise KeyError(f"{key} is not there")
            if not isinstance(place.get(part, getlink=True), h5py.HardLink):
                raise ClipspmError(f"{part} is a link, which a cache may not hold")
            place = place[part]
        if not isinstance(place, h5py.Dataset) or place.is_virtual or place.external:
            raise ClipspmError(f"{key} is not an array stored in this file")
        settings = place.id.get_create_plist()
        filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
        ours = place.dtype.name in dtypes and place.dtype == place.dtype.newbyteorder("<")
        if not ours or not filters <= {h5py.h5z.FILTER_FLETCHER32}:
            raise ClipspmError(f"{key} is not an array of a cache ({place.dtype})")
        if place.chunks is None and place.size and place.ndim:
            raise ClipspmError(f"{key} is not an array of a cache (it is not stored in chunks)")
        return place

    @staticmethod
    def write(path: Path, source: ZarrStore) -> None:
        """Copy a store into one HDF5 file, shard by shard: written to a temporary file, flushed, renamed.

        Raises :class:`~.disk.DiskFull` before writing if there is no room: the HDF5 library can crash on a
        full disk.
        """
        size_needed = sum(file.stat().st_size for file in source.path.rglob("*") if file.is_file())
        if free_bytes(path) < 1.02 * size_needed + 200_000:
            raise DiskFull(path.parent, f", {size_text(size_needed)} are needed")
        aside = hidden(path, "new")
        with h5py.File(aside, "w") as file:
            for name in BLOBS:
                data = np.frombuffer(source.blob(name), np.uint8)
                file.create_dataset(name, data=data, chunks=data.shape, fletcher32=True)
            keys = [layer_key(layer) for layer in source.spec().layers]
            for key in [*keys, TEXT]:
                shape = source.shape(key)
                size = source.shard_size if key != TEXT else shape[0]
                chunks = (max(1, min(size, shape[0])), *shape[1:])
                first = source.rows(key, 0, min(size, shape[0]))
                checked = {"chunks": chunks, "fletcher32": True} if first.size else {}
                target = file.create_dataset(key, shape, first.dtype, **checked)
                for rows in shards(shape[0], size):
                    target[rows.start : rows.stop] = source.rows(key, rows.start, rows.stop)
            for name, value in asdict(Facts.of(source)).items():
                if isinstance(value, str):
                    file.attrs[name] = value
                else:
                    values = _column(value)
                    file.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)
            file.flush()
        sync(aside)
        remove(seal_path(path))  # of a cache that is replaced: it would call this one changed
        sync(path.parent)
        aside.replace(path)
        sync(path.parent)


def _column(values: list[Any]) -> np.ndarray:
    """Numbers as int64, text as UTF-8; file name bytes that do not decode stay as they are."""
    if not values or isinstance(values[0], int):
        return np.asarray(values, np.int64)
    data = [_utf8(value) for value in values]
    return np.asarray(data, h5py.string_dtype("utf-8", max(1, *map(len, data))))


def _utf8(value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        return value.encode("utf-8", "surrogatepass")


def is_cache(path: Path) -> bool:
    """Return whether a cache may be at ``path``, whole or not."""
    return (path / SPEC).is_file() or (path.is_file() and path.suffix.lower() in (".h5", ".hdf5"))


def find_store(path: Path) -> ZarrStore | Hdf5Store:
    """The container at ``path``; raises :class:`ClipspmError` if there is none."""
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
