"""Write a cache shard by shard, so that a killed run loses at most the shard in flight.

The unit of writing is a shard: consecutive rows whose features fill exactly one chunk per layer. Its
chunks are written first; then one line in the ledger, flushed to disk, makes them data. Rows that no
ledger line names do not exist for a reader, whatever the arrays hold.

An HDF5 cache grows as a Zarr directory beside it (``PATH.parts``) and is assembled at the end.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from clipspm.cache.errors import ClipspmError
from clipspm.cache.spec import CacheSpec, Plan, VideoRecord
from clipspm.cache.store import (
    CLASSES,
    LEDGER,
    SPEC,
    VIDEOS,
    Hdf5Store,
    Store,
    ZarrStore,
    dump_lines,
    find_store,
    layer_key,
    write_atomically,
)

Format = Literal["zarr", "hdf5"]

#: what a shard's outcome adds to the plan's record of a video
_OUTCOME_FIELDS = ("status", "category", "error", "frames", "fps", "indices", "pts_seconds", "backend")


class CacheWriter:
    """Extends the cache at ``path``, or starts it.

    Raises :class:`ClipspmError` if ``path`` holds a cache with another fingerprint, or holds videos that
    the plan does not know: nothing is ever dropped silently.
    """

    def __init__(
        self,
        path: Path,
        spec: CacheSpec,
        plan: Plan,
        text: np.ndarray,
        *,
        format: Format = "zarr",
        shard_size: int = 256,
        overwrite: bool = False,
    ) -> None:
        self.path, self.format, self.spec, self.shard_size = path, format, spec, shard_size
        self.work = path if format == "zarr" else path.with_name(path.name + ".parts")
        if overwrite:
            for place in (path, self.work):
                if place.exists():
                    find_store(place)  # whatever is no cache is not ours to remove
                    _remove(place)
        self.work.parent.mkdir(parents=True, exist_ok=True)
        previous = self._previous()
        if previous is not None:
            check_same(path, previous.spec(), spec)
        self.assembled = isinstance(previous, Hdf5Store) and _holds_all(previous, plan)
        if self.assembled and previous is not None:
            self.records = previous.records()
            return
        self._prepare(previous, plan, text)
        self.store = ZarrStore(self.work)
        self.records = self.store.records()
        self._group = self.store.group()

    def _previous(self) -> Store | None:
        for candidate in (self.work, self.path):
            if candidate.exists():
                return find_store(candidate)
        return None

    def _prepare(self, previous: Store | None, plan: Plan, text: np.ndarray) -> None:
        """Bring the working directory to the plan, with every row already read carried over."""
        old = previous.records() if previous is not None else []
        lost = {r.id for r in old} - {v.id for v in plan.videos}
        if lost:
            raise ClipspmError(
                f"{self.path} holds {len(lost)} videos that are not among the videos now (first: "
                f"{min(lost)}): choose another --out, or --overwrite to start again"
            )
        in_place = isinstance(previous, ZarrStore) and previous.path == self.work
        if in_place and [r.id for r in old] == [v.id for v in plan.videos]:
            store = ZarrStore(self.work)
            self._truncate_torn_ledger()
            if store.classes() != list(plan.class_splits.items()):
                store.write_text(text)
            self._write_plan(self.work, plan)
            return
        aside = self.work.with_name(self.work.name + ".new")
        _remove(aside)
        aside.mkdir(parents=True)
        store = ZarrStore(aside)
        store.create(self.spec, len(plan.videos), text, self.shard_size)
        write_atomically(aside / SPEC, self.spec.to_json().encode())
        self._write_plan(aside, plan)
        (aside / LEDGER).touch()
        if previous is not None:
            self._carry_over(previous, old, store, plan)
        _remove(self.work)
        aside.rename(self.work)

    def _carry_over(self, previous: Store, old: list[VideoRecord], store: ZarrStore, plan: Plan) -> None:
        group = store.group()
        row_of = {v.id: i for i, v in enumerate(plan.videos)}
        done = [(i, row_of[r.id], r) for i, r in enumerate(old) if r.status != "pending"]
        for layer in self.spec.layers:
            before = previous.array(layer_key(layer))
            target = np.zeros((len(plan.videos), *before.shape[1:]), before.dtype)
            for i, row, record in done:
                if record.status == "ok":
                    target[row] = before[i]
            group[layer_key(layer)][...] = target  # type: ignore[index]
        outcomes = {row: record for _, row, record in done}
        with (store.path / LEDGER).open("ab") as ledger:
            for shard, rows in enumerate(_shards(len(plan.videos), self.shard_size)):
                kept = {row: outcomes[row] for row in rows if row in outcomes}
                if kept:
                    ledger.write(_ledger_line(shard, kept))

    def _write_plan(self, folder: Path, plan: Plan) -> None:
        rows = [
            {"id": v.id, "path": v.path, "class_name": v.class_name, "split": v.split} for v in plan.videos
        ]
        for name, data in (
            (VIDEOS, dump_lines(rows)),
            (CLASSES, json.dumps(list(plan.class_splits.items()), indent=1).encode("ascii")),
        ):
            if not (folder / name).exists() or (folder / name).read_bytes() != data:
                write_atomically(folder / name, data)

    def _truncate_torn_ledger(self) -> None:
        ledger = self.work / LEDGER
        if not ledger.exists():
            ledger.touch()
        data = ledger.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            write_atomically(ledger, whole)

    def pending_shards(self) -> list[tuple[int, list[int]]]:
        """The shards with rows still to do: (shard number, those rows)."""
        found = []
        for shard, rows in enumerate(_shards(len(self.records), self.shard_size)):
            todo = [row for row in rows if self.records[row].status == "pending"]
            if todo:
                found.append((shard, todo))
        return found

    def commit(
        self, shard: int, outcomes: Mapping[int, VideoRecord], features: Mapping[str, np.ndarray]
    ) -> None:
        """Make a shard data: ``outcomes`` by row, ``features[layer]`` [rows that are ok, V, T, D].

        Rows that the shard already held stay.
        """
        rows = list(_shards(len(self.records), self.shard_size)[shard])
        first, last = rows[0], rows[-1] + 1
        good = [row for row in sorted(outcomes) if outcomes[row].status == "ok"]
        held = any(self.records[row].status == "ok" for row in rows)
        for layer, new in features.items():
            array = self._group[layer_key(layer)]
            block = (
                np.asarray(array[first:last])  # type: ignore[index]
                if held
                else np.zeros((last - first, *array.shape[1:]), array.dtype)  # type: ignore[union-attr]
            )
            if good:
                block[[row - first for row in good]] = new
            array[first:last] = block  # type: ignore[index]
        with (self.work / LEDGER).open("ab") as ledger:
            ledger.write(_ledger_line(shard, outcomes))
            ledger.flush()
            os.fsync(ledger.fileno())
        for row, record in outcomes.items():
            self.records[row] = record

    def finish(self) -> Path:
        """Assemble an HDF5 cache from its parts; nothing to do for Zarr. Returns the cache's path."""
        if self.format == "hdf5" and not self.assembled:
            Hdf5Store.write(self.path, self.store, self.shard_size)
            _remove(self.work)
        return self.path


def check_same(path: Path, found: CacheSpec, wanted: CacheSpec) -> None:
    """Refuse to mix numbers of two settings in one cache."""
    if found.fingerprint != wanted.fingerprint:
        raise ClipspmError(
            f"{path} was extracted with other settings (fingerprint {found.fingerprint[:16]}, this run "
            f"{wanted.fingerprint[:16]}); they differ in {'; '.join(found.differences(wanted))}. "
            "Choose another --out, or --overwrite"
        )


def _holds_all(store: Store, plan: Plan) -> bool:
    """Whether a finished cache already is what the plan asks for."""
    records = store.records()
    return (
        [(r.id, r.path, r.class_name, r.split) for r in records]
        == [(v.id, v.path, v.class_name, v.split) for v in plan.videos]
        and all(r.status != "pending" for r in records)
        and store.classes() == list(plan.class_splits.items())
    )


def _shards(videos: int, size: int) -> list[range]:
    return [range(start, min(start + size, videos)) for start in range(0, videos, size)]


def _ledger_line(shard: int, outcomes: Mapping[int, VideoRecord]) -> bytes:
    rows = {}
    for row in sorted(outcomes):
        record = outcomes[row].to_dict()
        rows[str(row)] = {k: record[k] for k in _OUTCOME_FIELDS}
    return dump_lines([{"shard": shard, "rows": rows}])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
