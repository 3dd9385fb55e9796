"""Make new caches from existing ones: convert, merge and pack them, and export them to other formats.

No feature is computed again: values are checked against their digests and copied bit for bit.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from clipspm.cache.disk import append, check_room, hidden, make_folder, move, remove, replacing, room_on
from clipspm.cache.home import check_outside
from clipspm.cache.ledger import Entry, shards, values_digest
from clipspm.cache.lock import writing
from clipspm.cache.reader import Cache, open_cache, size_on_disk
from clipspm.cache.seal import write_seal
from clipspm.cache.spec import LEDGER, SPLITS, ExportFormat, Format, Plan, Split, VideoRecord, format_of
from clipspm.cache.store import Hdf5Store, ZarrStore, layer_file, layer_key
from clipspm.cache.verify import verify
from clipspm.cache.writer import parts_path
from clipspm.errors import ClipspmError, UsageError
from clipspm.progress import track


@dataclass(frozen=True)
class _Row:
    """A video of the new cache: its record, and its cache and row there."""

    record: VideoRecord
    source: Cache
    row: int


def convert(
    source: str | Path, target: str | Path, *, format: Format | None = None, dataset: str | None = None
) -> Path:
    """Copy a cache to ``target`` in ``format`` (default: by its name) and verify it. Returns the path.

    ``dataset``: the data set that the copy is of, for one that has the same videos.
    """
    cache = open_cache(source)
    if dataset is not None:
        cache = replace(cache, spec=replace(cache.spec, dataset=dataset))
    target = Path(target)
    rows = [_Row(record, cache, row) for row, record in enumerate(cache.videos)]
    return _write(target, format or format_of(target), rows, [cache], len(cache.shards[0]))


def merge(sources: Sequence[str | Path], target: str | Path, *, format: Format | None = None) -> Path:
    """Merge caches with equal fingerprints, such as parts extracted on different machines. Returns the path.

    A video in several of them is taken from the first that read it. Raises :class:`ClipspmError` if two hold
    different features of a video, or different splits or texts of a class.
    """
    caches = [open_cache(source) for source in sources]
    if len(caches) < 2:
        raise UsageError("merging needs at least two caches")
    target, first = Path(target), caches[0]
    splits: dict[str, Split] = {}
    texts: dict[str, np.ndarray] = {}
    found: dict[str, _Row] = {}
    for cache in caches:
        if cache.spec.fingerprint != first.spec.fingerprint:
            raise ClipspmError(
                f"{cache.path} and {first.path} differ in {'; '.join(first.spec.differences(cache.spec))}: "
                "only caches with equal fingerprints can be merged"
            )
        for name, text in zip(cache.class_names, cache.text(templates=True), strict=True):
            split = cache.class_splits[name]
            if splits.setdefault(name, split) != split:
                raise ClipspmError(
                    f"class {name!r} is in split {split} in {cache.path}, in {splits[name]} in another cache"
                )
            if not np.allclose(texts.setdefault(name, text), text, rtol=1e-3, atol=1e-5):
                raise ClipspmError(
                    f"class {name!r} has a different text feature in {cache.path} than in another cache"
                )
        for row, record in enumerate(cache.videos):
            new, old = _Row(record, cache, row), found.get(record.id)
            if old is None or _WORTH[old.record.status] < _WORTH[record.status]:
                found[record.id] = new
            elif old.record.status == record.status == "ok" and not _same(old, new):
                raise ClipspmError(
                    f"video {record.id!r} has different features in {cache.path} and {old.source.path}"
                )
    order = {"train": 0, "val": 1, "test": 2, "none": 3}
    rows = sorted(found.values(), key=lambda r: (order[r.record.split], r.record.class_name, r.record.id))
    return _write(target, format or format_of(target), rows, caches, max(len(c.shards[0]) for c in caches))


#: of two records of a video, the one with the higher value is kept
_WORTH = {"pending": 0, "failed": 1, "ok": 2}


def _same(a: _Row, b: _Row) -> bool:
    return all(np.array_equal(_values(a, layer), _values(b, layer)) for layer in a.source.spec.layers)


def _values(row: _Row, layer: str) -> np.ndarray:
    number, place = divmod(row.row, len(row.source.shards[0]))
    return row.source.read_shard(layer, number)[place]


def pack(
    source: str | Path, target: str | Path, *, format: Format | None = None, allow_partial: bool = False
) -> Path:
    """Copy a finished cache into one shard, without failed videos. Returns the path.

    ``allow_partial``: accept an unfinished cache and leave out what is missing or damaged.
    """
    cache = open_cache(source).require(SPLITS, allow_partial=allow_partial)
    target = Path(target)
    rows = [_Row(record, cache, row) for row, record in enumerate(cache.videos) if record.status == "ok"]
    if not rows:
        raise ClipspmError(f"{cache.path} has no features of any video: there is nothing to pack")
    return _write(target, format or format_of(target), rows, [cache], len(rows))


def export(
    source: str | Path,
    target: str | Path,
    *,
    format: ExportFormat | None = None,
    allow_partial: bool = False,
) -> Path:
    """Write the good videos to one ``.npz`` or ``.safetensors`` file for other programs. Returns the path.

    ``features.<layer>`` [N, V, T, D], with ``8.mean`` for the layer ``8:mean``; ``text`` [C, P, D];
    ``labels`` [N] (rows of ``class_names``); ids, class names, splits and spec as text arrays in ``.npz``, as
    JSON in ``.safetensors``' metadata. No pickle.
    ``allow_partial``: leave out what is missing or damaged. Raises :class:`ClipspmError` for NaN or infinite
    features, :class:`UsageError` if ``target`` exists or has another suffix.
    """
    cache, target = open_cache(source).require(SPLITS, allow_partial=allow_partial), Path(target)
    kind = format or target.suffix.removeprefix(".")
    if kind not in ("npz", "safetensors"):
        raise UsageError(f"{target}: export writes .npz or .safetensors")
    if target.exists():
        raise UsageError(f"{target} exists already: name another file")
    check_outside(target)
    number = {name: i for i, name in enumerate(cache.class_names)}
    arrays = {f"features.{layer_file(layer)}": cache.features(layer) for layer in cache.spec.layers}
    arrays["text"] = cache.text(templates=True)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            whose = f"class {cache.class_names[row]!r}" if name == "text" else f"video {cache.good[row].id!r}"
            raise ClipspmError(
                f"{cache.path} holds NaN or infinite values ({name}, {whose}): `clipspm cache verify "
                f"{cache.path}` names them all, with --repair they are extracted again"
            )
    arrays["labels"] = np.array([number[v.class_name] for v in cache.good], np.int64)
    words = {
        "ids": [v.id for v in cache.good],
        "class_names": list(cache.class_names),
        "class_splits": [cache.class_splits[name] for name in cache.class_names],
    }
    with room_on(target.parent), replacing(target) as aside:
        if kind == "npz":
            texts = {name: np.array(values) for name, values in words.items()}
            with aside.open("wb") as file:
                np.savez(file, spec=np.array(cache.spec.to_json()), **arrays, **texts)  # type: ignore[arg-type]
        else:
            metadata = {name: json.dumps(values) for name, values in words.items()}
            try:
                save_file(arrays, aside, {**metadata, "spec": cache.spec.to_json()})
            except SafetensorError as error:
                raise ClipspmError(f"cannot write {target}: {error}") from error
    return target


def _write(
    target: Path, format: Format, rows: Sequence[_Row], sources: Sequence[Cache], shard_size: int
) -> Path:
    """Write ``rows`` as a finished cache at ``target`` and verify it."""
    if target.exists() or parts_path(target).exists():
        raise UsageError(f"{target} exists already: name another path")
    check_outside(target)
    check_room(target, (2 if format == "hdf5" else 1) * sum(size_on_disk(cache.path) for cache in sources))
    splits = {name: cache.class_splits[name] for cache in reversed(sources) for name in cache.class_names}
    names = tuple(dict.fromkeys(name for cache in sources for name in cache.class_names))
    texts = {
        name: text
        for cache in reversed(sources)
        for name, text in zip(cache.class_names, cache.text(templates=True), strict=True)
    }
    held = Counter(row.record.class_name for row in rows)
    expected = {name: max(held[name], *(c.expected.get(name, 0) for c in sources)) for name in names}
    absent = {one[0]: one for cache in sources for one in cache.absent if one[0] not in splits}
    plan = Plan(tuple(row.record for row in rows), names, splits, expected, tuple(absent.values()))
    work = hidden(target, "new.parts")
    with writing(target), room_on(target.parent):
        remove(work)
        make_folder(work)
        try:
            store = ZarrStore(work)
            store.create(sources[0].spec, plan, np.stack([texts[name] for name in names]), shard_size)
            _copy(store, rows)
            if format == "hdf5":
                Hdf5Store.write(target, store)
            else:
                store.describe()
                move(work, target)
        finally:
            remove(work)
        if all(record.status != "pending" for record in plan.videos):
            write_seal(target)
    report = verify(target)
    if report.sealed and not report.ok:
        first = report.findings[0]
        raise ClipspmError(f"{target} was not written correctly: {first.where} {first.problem}")
    return target


def _copy(store: ZarrStore, rows: Sequence[_Row]) -> None:
    """Copy the values of ``rows`` shard by shard, checking source shards against their digests."""
    spec = store.spec()
    ledger: list[bytes] = []
    read: dict[tuple[int, str], tuple[int, np.ndarray]] = {}
    parts = shards(len(rows), store.shard_size)
    for shard, here in track(enumerate(parts), "copying", len(parts), "shards"):
        outcomes = {i: rows[i].record for i in here if rows[i].record.status != "pending"}
        sums = {}
        for layer in spec.layers if outcomes else ():
            shape = (len(here), spec.views, spec.frames, spec.dims[layer])
            block = np.zeros(shape, np.float16 if spec.store_dtype == "fp16" else np.float32)
            for i in here:
                row = rows[i]
                if row.record.status != "ok":
                    continue
                number, place = divmod(row.row, len(row.source.shards[0]))
                key = (id(row.source), layer)
                if read.get(key, (-1, block))[0] != number:
                    read[key] = (number, row.source.read_shard(layer, number))
                block[i - here.start] = read[key][1][place]
            store.write_rows(layer_key(layer), here.start, here.stop, block)
            sums[layer] = values_digest(block)
        if outcomes:
            ledger.append(Entry.of(shard, outcomes, sums).to_line())
    append(store.path / LEDGER, b"".join(ledger))
