"""Write a cache shard by shard, so that a killed run loses at most the shards in flight.

The unit of writing is a shard: consecutive rows whose features fill exactly one chunk per layer. It is staged
first (:mod:`.staging`); then its chunks are written, and a ledger line, flushed to disk, commits them.
Readers ignore rows without a ledger line, whatever the arrays hold. A kill at any point in between leaves the
staged shard, which the next run takes in again.

An HDF5 cache grows as a Zarr directory beside it (``PATH.parts``) and is assembled at the end.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from clipspm.cache.content import read_records
from clipspm.cache.disk import append, discard, hidden, make_folder, move, remove, room_on, write_atomically
from clipspm.cache.ledger import TEXT_SHARD, Entry, apply, digests, read_ledger, values_digest
from clipspm.cache.seal import check_metadata, seal_path, write_seal
from clipspm.cache.spec import BLOBS, LEDGER, CacheSpec, Format, Plan, VideoRecord
from clipspm.cache.staging import DamagedStage, place_for, read_staged, stage, staged, unstage
from clipspm.cache.store import Hdf5Store, Store, ZarrStore, find_store, layer_key, readable
from clipspm.errors import ClipspmError, UsageError


def parts_path(cache: Path) -> Path:
    """The folder in which an HDF5 cache grows."""
    return cache.with_name(cache.name + ".parts")


class CacheWriter:
    """Extends the cache at ``path``, or starts it. Use it inside :func:`clipspm.cache.lock.writing`.

    A cache of the same videos keeps its shard size. Raises :class:`ClipspmError` if ``path`` holds a cache
    with another fingerprint, or with videos that are not in the plan and would be lost.
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
        retry_failed: bool = False,
    ) -> None:
        self.path, self.format, self.spec = path, format, spec
        self.work = path if format == "zarr" else parts_path(path)
        self._todo = statuses_to_do(retry_failed)
        if overwrite:
            places = [place for place in dict.fromkeys((path, self.work)) if place.exists()]
            for place in places:
                check_removable(place)
            for place in places:
                remove(seal_path(place))
                discard(place)
        else:
            check_format(path, format)
        make_folder(self.work.parent)
        self._recover()
        old: list[VideoRecord] = []
        with readable(path):
            previous = self._previous()
            if previous is not None:
                if previous.path.is_dir():
                    check_metadata(previous.path)
                check_fingerprint(path, previous.spec(), spec)
                old = read_records(previous)
            self.assembled = isinstance(previous, Hdf5Store) and self._holds_all(previous, old, plan)
        if self.assembled and previous is not None:
            self.records, self.shards = old, previous.shards()
            return
        with room_on(self.work):
            self._prepare(previous, old, plan, text, shard_size)
        self.store = ZarrStore(self.work)
        self.shards = self.store.shards()
        entries = self.store.entries()
        self.records, self._digests = apply(entries, self.store.planned()), dict(digests(entries))
        self.staging = place_for(self.work, spec, self.store.planned(), self.store.shard_size)
        for shard in staged(self.staging):
            try:
                self.adopt(shard)
            except DamagedStage:
                unstage(self.staging, shard)  # it is extracted again

    def _recover(self) -> None:
        """Undo a kill between the two renames of :meth:`_prepare`, and remove leftovers."""
        old = hidden(self.work, "old")
        if old.exists() and not self.work.exists():
            move(old, self.work)
        for place in (old, hidden(self.work, "dead"), hidden(self.path, "dead")):
            remove(place)

    def _previous(self) -> Store | None:
        for candidate in (self.work, self.path):
            if candidate.exists():
                return find_store(candidate)
        return None

    def _holds_all(self, store: Store, records: list[VideoRecord], plan: Plan) -> bool:
        """Whether a finished cache already holds everything in the plan."""
        return (
            [(r.id, r.path, r.class_name, r.split) for r in records]
            == [(v.id, v.path, v.class_name, v.split) for v in plan.videos]
            and not any(r.status in self._todo for r in records)
            and store.classes() == plan.classes()
        )

    def _prepare(
        self,
        previous: Store | None,
        old: list[VideoRecord],
        plan: Plan,
        text: np.ndarray,
        shard_size: int,
    ) -> None:
        """Make the working directory match the plan, keeping every row that is already done."""
        if isinstance(previous, ZarrStore):
            self._drop_torn_line(previous)
        check_nothing_dropped(self.path, old, plan)
        in_place = isinstance(previous, ZarrStore) and previous.path == self.work
        if in_place and [r.id for r in old] == [v.id for v in plan.videos]:
            ZarrStore(self.work).write_plan(plan, text)
            return
        aside = hidden(self.work, "new")
        remove(aside)
        make_folder(aside)
        store = ZarrStore(aside)
        store.create(self.spec, plan, text, shard_size)
        if previous is not None:
            carry_over(previous, old, store, plan)
        if self.work.exists():
            move(self.work, hidden(self.work, "old"))
        move(aside, self.work)
        remove(hidden(self.work, "old"))

    @staticmethod
    def _drop_torn_line(store: ZarrStore) -> None:
        data = store.blob(LEDGER)
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            write_atomically(store.path / LEDGER, whole)

    def pending_shards(self) -> list[tuple[int, list[int]]]:
        """(shard number, rows still to do) of each shard that has some."""
        found = []
        for shard, rows in enumerate(self.shards):
            todo = [row for row in rows if self.records[row].status in self._todo]
            if todo:
                found.append((shard, todo))
        return found

    def commit(
        self, shard: int, outcomes: Mapping[int, VideoRecord], features: Mapping[str, np.ndarray]
    ) -> None:
        """Stage a shard and take it in: ``features[layer]`` [rows with status ok, V, T, D]."""
        stage(self.staging, shard, outcomes, features)
        self.adopt(shard)

    def adopt(self, shard: int) -> None:
        """Take a staged shard into the cache, keeping the good rows that the shard already held.

        While the chunks are overwritten, the ledger marks those rows as pending and their features are staged
        together with the new ones: a kill loses nothing.
        """
        entry, features = read_staged(self.staging, shard)
        outcomes = entry.records(self.records)
        held = [row for row in self.shards[shard] if self.records[row].status == "ok" and row not in outcomes]
        with room_on(self.work):
            self.store.begin_change()
            if held:
                features = self._with_held_rows(shard, held, outcomes, features)
                pending = {row: _pending(self.records[row]) for row in held}
                outcomes = {**{row: self.records[row] for row in held}, **outcomes}
                stage(self.staging, shard, outcomes, features)
                append(self.work / LEDGER, Entry.of(shard, pending, {}).to_line())
            sums = self._write_chunks(shard, outcomes, features)
            append(self.work / LEDGER, Entry.of(shard, outcomes, sums).to_line())
        self._digests[shard] = sums
        for row, record in outcomes.items():
            self.records[row] = record
        unstage(self.staging, shard)

    def _with_held_rows(
        self,
        shard: int,
        held: list[int],
        outcomes: Mapping[int, VideoRecord],
        features: Mapping[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """The features of the ``held`` rows and of the new ones, in row order."""
        rows, sums = self.shards[shard], self._digests.get(shard, {})
        new = [row for row in sorted(outcomes) if outcomes[row].status == "ok"]
        order = np.argsort([*held, *new], kind="stable")
        joined = {}
        for layer in self.spec.layers:
            old = self.store.shard(layer, shard, rows, sums.get(layer))[[row - rows.start for row in held]]
            joined[layer] = np.concatenate([old, features[layer]])[order] if new else old
        return joined

    def _write_chunks(
        self, shard: int, outcomes: Mapping[int, VideoRecord], features: Mapping[str, np.ndarray]
    ) -> dict[str, str]:
        """Write the shard's chunks. Returns the digest of each layer's values."""
        rows = self.shards[shard]
        good = [row - rows.start for row in sorted(outcomes) if outcomes[row].status == "ok"]
        sums = {}
        for layer in self.spec.layers:
            shape = (len(rows), self.spec.views, self.spec.frames, self.spec.dims[layer])
            block = np.zeros(shape, np.float16 if self.spec.store_dtype == "fp16" else np.float32)
            if good:
                block[good] = features[layer]
            self.store.write_rows(layer_key(layer), rows.start, rows.stop, block)
            sums[layer] = values_digest(block)
        return sums

    def finish(self) -> Path:
        """Sort the ledger, assemble an HDF5 cache, and write the seal. Returns the cache's path.

        The same videos give the same bytes, independent of engine, workers and interruptions.
        """
        if self.assembled:
            return self.path
        with room_on(self.work):
            ledger = self._ordered_ledger()
            if self.store.blob(LEDGER) != ledger:
                write_atomically(self.work / LEDGER, ledger)
            self.store.remove_strays()
            if self.format == "hdf5":
                Hdf5Store.write(self.path, self.store)
                write_seal(self.path)
                discard(self.work)
                return self.path
            self.store.describe()
            if not seal_path(self.path).exists():
                write_seal(self.path)
        return self.path

    def _ordered_ledger(self) -> bytes:
        """The ledger with the text line first, then one line per shard, in order."""
        lines = [Entry(TEXT_SHARD, (), (), self._digests[TEXT_SHARD]).to_line()]
        for shard, rows in enumerate(self.shards):
            outcomes = {row: self.records[row] for row in rows if self.records[row].status != "pending"}
            if outcomes:
                lines.append(Entry.of(shard, outcomes, self._digests[shard]).to_line())
        return b"".join(lines)


def _pending(record: VideoRecord) -> VideoRecord:
    return VideoRecord(record.id, record.path, record.class_name, record.split)


def check_removable(place: Path) -> None:
    """Raise :class:`ClipspmError` if ``place`` does not look like a (possibly damaged) cache."""
    store, found = find_store(place), set()
    if isinstance(store, ZarrStore):
        found = {p.name for p in place.iterdir()} & {*BLOBS, "layers"}
    elif seal_path(place).is_file():
        return
    else:
        with suppress(OSError), h5py.File(place, "r") as file:
            found = set(file) & {*BLOBS, "layers"}
    if len(found) < 3:
        raise ClipspmError(f"{place} does not look like a cache and is not removed: choose another --out")


def check_format(path: Path, format: Format) -> None:
    """Raise :class:`UsageError` if ``path`` holds a cache of the other format."""
    if path.exists() and path.is_dir() != (format == "zarr"):
        raise UsageError(
            f"{path} is not in the format --format {format}: choose another --out, or use "
            "`clipspm cache convert`"
        )


def check_nothing_dropped(path: Path, held: Sequence[VideoRecord], plan: Plan) -> None:
    """Raise :class:`ClipspmError` if the cache holds a video that is not in the plan and would be lost."""
    lost = {record.id for record in held} - {video.id for video in plan.videos}
    if lost:
        raise ClipspmError(
            f"{path} holds {len(lost)} videos that are not among the videos now (first: "
            f"{min(lost)}): choose another --out, or start again with --overwrite"
        )


def statuses_to_do(retry_failed: bool) -> tuple[str, ...]:
    """The statuses of the videos that an extraction has to do."""
    return ("pending", "failed") if retry_failed else ("pending",)


def carry_over(previous: Store, old: list[VideoRecord], store: ZarrStore, plan: Plan) -> None:
    """Copy every row that is not pending from ``previous`` to its place in ``store``, shard by shard.

    Raises :class:`~.store.DamagedShard` if a source shard does not match its digest.
    """
    where = {r.id: i for i, r in enumerate(old) if r.status != "pending"}
    spec, ranges, known = store.spec(), previous.shards(), digests(read_ledger(previous.blob(LEDGER))[0])
    dtype = np.float16 if spec.store_dtype == "fp16" else np.float32
    read: dict[str, tuple[int, np.ndarray]] = {}
    ledger = []
    for shard, rows in enumerate(store.shards()):
        sources = {row: where[plan.videos[row].id] for row in rows if plan.videos[row].id in where}
        if not sources:
            continue
        sums = {}
        for layer in spec.layers:
            key = layer_key(layer)
            block = np.zeros((len(rows), spec.views, spec.frames, spec.dims[layer]), dtype)
            for row, i in sources.items():
                if old[i].status != "ok":
                    continue
                number, place = divmod(i, len(ranges[0]))
                if layer not in read or read[layer][0] != number:
                    digest = known.get(number, {}).get(layer)
                    read[layer] = number, previous.shard(layer, number, ranges[number], digest)
                block[row - rows.start] = read[layer][1][place]
            store.write_rows(key, rows.start, rows.stop, block)
            sums[layer] = values_digest(block)
        ledger.append(Entry.of(shard, {row: old[i] for row, i in sources.items()}, sums).to_line())
    append(store.path / LEDGER, b"".join(ledger))


def check_fingerprint(path: Path, found: CacheSpec, wanted: CacheSpec) -> None:
    """Raise :class:`ClipspmError` if the cache at ``path`` was made with other settings than ``wanted``."""
    if found.fingerprint != wanted.fingerprint:
        raise ClipspmError(
            f"{path} was extracted with other settings (fingerprint {found.fingerprint[:16]}, this run "
            f"{wanted.fingerprint[:16]}); they differ in {'; '.join(found.differences(wanted))}. "
            "Choose another --out, or start again with --overwrite"
        )
