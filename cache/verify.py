"""Check every byte of a cache and report the damage; queue damaged shards for extraction.

Damage is looked for at three levels: the seal (any byte of any file), the ledger's digests (which shard), and
the values (NaN, infinity, vectors whose values are all equal).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pebble import ProcessExpired, ProcessPool

from clipspm.cache.content import problems, text_problems
from clipspm.cache.disk import append, discard, hidden, make_folder, move, remove, write_atomically
from clipspm.cache.ledger import TEXT_SHARD, Entry, apply, digests, read_ledger, values_digest
from clipspm.cache.lock import writing
from clipspm.cache.seal import IRREGULAR, broken, irregular, seal_path
from clipspm.cache.spec import CLASSES, LEDGER, SPEC, VIDEOS, CacheSpec, Plan, VideoRecord
from clipspm.cache.staging import DamagedStage, place_for, read_staged, staged, unstage
from clipspm.cache.store import (
    STAGED,
    TEXT,
    Hdf5Store,
    Store,
    ZarrStore,
    find_store,
    layer_key,
)
from clipspm.cache.writer import carry_over, parts_path
from clipspm.errors import ClipspmError, plain
from clipspm.progress import track

_INSPECT_SECONDS = 3600.0  # time limit for inspecting a damaged HDF5 file


@dataclass(frozen=True)
class Finding:
    """One problem, and the file, ledger line, shard or video ``where`` it was found."""

    where: str
    problem: str


@dataclass(frozen=True)
class Report:
    """The result of :func:`verify`.

    ``shards``: the damaged ones; ``lines``: damaged ledger lines; ``statuses``: number of videos by status;
    ``readable``: whether the metadata could be read.
    """

    path: Path
    sealed: bool
    findings: tuple[Finding, ...]
    shards: tuple[int, ...]
    lines: tuple[int, ...]
    statuses: dict[str, int]
    readable: bool

    @property
    def ok(self) -> bool:
        """Whether the cache is complete, sealed and undamaged."""
        return self.sealed and not self.findings

    def to_json(self) -> dict[str, Any]:
        """The report in plain JSON types."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "sealed": self.sealed,
            "videos": self.statuses,
            "damaged_shards": list(self.shards),
            "damaged_ledger_lines": list(self.lines),
            "findings": [{"where": f.where, "problem": f.problem} for f in self.findings],
        }


@dataclass(frozen=True)
class _Inspection:
    """The problems found inside the container; the fields are those of :class:`Report`."""

    findings: tuple[Finding, ...]
    shards: tuple[int, ...] = ()
    lines: tuple[int, ...] = ()
    statuses: tuple[tuple[str, int], ...] = ()
    readable: bool = False


def verify(path: str | Path) -> Report:
    """Read and check the whole cache at ``path``; of a growing cache, what is there so far."""
    path = path_or_parts(Path(path))
    store = find_store(path)
    sealed = seal_path(path).is_file()
    findings = [Finding(name, problem) for name, problem in broken(path)]
    if not sealed:
        links = [name for name, file in irregular(path) if file.is_symlink() or not file.is_dir()]
        findings += [Finding(name, f"is {IRREGULAR}: remove it from the cache") for name in links]
    inspection = _inspect_in_subprocess(path) if findings and isinstance(store, Hdf5Store) else _inspect(path)
    findings += inspection.findings
    if not sealed:
        pending = dict(inspection.statuses).get("pending", 0)
        todo = f"{pending} videos are still to be extracted" if pending else "it was never finished"
        findings.append(
            Finding(seal_path(path).name, f"is missing ({todo}): run the same `clipspm extract` again")
        )
    return Report(
        path,
        sealed,
        tuple(findings),
        inspection.shards,
        inspection.lines,
        dict(inspection.statuses),
        inspection.readable,
    )


def path_or_parts(path: Path) -> Path:
    """``path``, or the parts folder of an HDF5 cache that is not assembled yet."""
    return parts_path(path) if not path.exists() and parts_path(path).is_dir() else path


def _inspect_in_subprocess(path: Path) -> _Inspection:
    """Run :func:`_inspect` in a subprocess, because a damaged HDF5 file can crash the library."""
    with ProcessPool(max_workers=1, context=get_context("spawn")) as pool:
        try:
            found: _Inspection = pool.schedule(_inspect, args=[path], timeout=_INSPECT_SECONDS).result()
        except (ProcessExpired, FutureTimeout, BrokenProcessPool):
            found = _Inspection((Finding(path.name, "is too damaged to be inspected"),))
    return found


def _inspect(path: Path) -> _Inspection:
    store = find_store(path)
    try:
        entries, lines = read_ledger(store.blob(LEDGER))
        spec, records = store.spec(), apply(entries, store.planned())
        unsound = tuple(Finding(*found) for found in problems(store, spec, records, store.classes()))
        ranges = [] if unsound else store.shards()  # as many as its shape says
    except Exception as error:  # damaged bytes can raise anything
        why = plain(error)
        return _Inspection((Finding(path.name, f"its metadata cannot be read ({why})"),))
    if unsound:
        return _Inspection(unsound)
    findings = [Finding(f"{LEDGER}, line {line}", "is damaged: what it committed is lost") for line in lines]
    sums, bad = digests(entries), []
    findings += _inspect_text(store, spec, sums.get(TEXT_SHARD, {}).get(TEXT))
    for shard, rows in track(enumerate(ranges), "verifying", len(ranges), "shards"):
        good = [row for row in rows if records[row].status == "ok"]
        if not good:
            continue
        found = [
            finding
            for layer in spec.layers
            for finding in _inspect_shard(store, layer, shard, rows, good, records, sums.get(shard, {}))
        ]
        findings += found
        if found:
            bad.append(shard)
    for shard in _damaged_stages(store):
        findings.append(
            Finding(f"{STAGED}, shard {shard}", "is damaged: the next `clipspm extract` does it again")
        )
    statuses = Counter(record.status for record in records)
    return _Inspection(tuple(findings), tuple(bad), tuple(lines), tuple(statuses.items()), True)


def _damaged_stages(store: Store) -> Iterator[int]:
    """The staged shards that are damaged."""
    place = place_for(store.path, store.spec(), store.planned(), store.shard_size)
    for shard in staged(place):
        try:
            read_staged(place, shard)
        except DamagedStage:
            yield shard


def _inspect_text(store: Store, spec: CacheSpec, digest: str | None) -> list[Finding]:
    try:
        for found in text_problems(store, spec, store.classes()):
            return [Finding(*found)]
        text = store.array(TEXT)
    except Exception as error:
        return [Finding(TEXT, f"cannot be read ({' '.join(str(error).split())})")]
    if values_digest(text) != digest:
        return [Finding(TEXT, "does not match its digest")]
    return [] if np.isfinite(text).all() else [Finding(TEXT, "holds NaN or infinite values")]


def _inspect_shard(
    store: Store,
    layer: str,
    shard: int,
    rows: range,
    good: list[int],
    records: Sequence[VideoRecord],
    sums: Any,
) -> Iterator[Finding]:
    where = f"shard {shard}, layer {layer}"
    try:
        values = store.chunk(layer_key(layer), shard, rows)
    except Exception as error:
        yield Finding(where, f"cannot be read ({' '.join(str(error).split())})")
        return
    if values_digest(values) != sums.get(layer):
        yield Finding(where, "does not match its digest")
        return
    kept = values[[row - rows.start for row in good]]
    flat = kept.reshape(len(good), -1, kept.shape[-1])
    finite = np.isfinite(flat).all((1, 2))
    constant = (flat.max(-1) == flat.min(-1)).any(-1)
    for row, is_finite, is_constant in zip(good, finite, constant, strict=True):
        if not is_finite:
            yield Finding(f"{where}, video {records[row].id!r}", "holds NaN or infinite values")
        elif is_constant:
            yield Finding(f"{where}, video {records[row].id!r}", "has a frame whose values are all the same")


def repair(report: Report) -> str:
    """Queue the damaged shards of ``report`` for extraction. Returns one line with what to do next.

    A Zarr cache is repaired in place; the good shards of an HDF5 cache are copied to ``PATH.parts``, where
    ``extract`` continues. Raises :class:`ClipspmError` if the metadata is damaged.
    """
    if report.ok:
        return f"{report.path} is undamaged: nothing to repair"
    store = find_store(report.path)
    strays = {name for name, _ in irregular(report.path)}
    metadata = [f.where for f in report.findings if _is_metadata(f.where) and f.where not in strays]
    if not report.readable or (isinstance(store, ZarrStore) and metadata):
        what = metadata[0] if metadata else "its metadata"
        raise ClipspmError(
            f"{report.path}: {what} is damaged, and the shards cannot be used without it: extract again "
            "with --overwrite"
        )
    cache, parts = report.path, parts_path(report.path)
    if isinstance(store, Hdf5Store) and parts.exists():
        return (
            f"{parts} exists already, from a repair or an unfinished extraction: run the same `clipspm "
            f"extract` to continue there; `clipspm cache verify {parts}` checks it"
        )
    with writing(cache.with_name(cache.name.removesuffix(".parts"))):
        entries, _ = read_ledger(store.blob(LEDGER))
        planned = store.planned()
        records = apply(entries, planned)
        lost = [
            row for shard in report.shards for row in store.shards()[shard] if records[row].status == "ok"
        ]
        queued = len(lost) + sum(record.status == "pending" for record in records)
        if isinstance(store, ZarrStore):
            store.begin_change()
            if any(f.where == TEXT or f.where.startswith(f"{TEXT}/") for f in report.findings):
                remove(cache / TEXT)  # extract writes it again
            for _, stray in irregular(cache):
                remove(stray)
            place = place_for(cache, store.spec(), planned, store.shard_size)
            for shard in _damaged_stages(store):
                unstage(place, shard)
            write_atomically(cache / LEDGER, b"".join(entry.to_line() for entry in entries))
            for shard in report.shards:
                rows = [row for row in store.shards()[shard] if records[row].status == "ok"]
                pending = apply((), planned)
                append(cache / LEDGER, Entry.of(shard, {row: pending[row] for row in rows}, {}).to_line())
        else:
            _to_parts(store, records, set(lost))
    return f"{queued} videos are queued: run the same `clipspm extract` again"


def _is_metadata(where: str) -> bool:
    return where in (SPEC, CLASSES, VIDEOS, "zarr.json") or (
        where.startswith("layers/") and where.endswith("/zarr.json")
    )


def _to_parts(store: Hdf5Store, records: list[VideoRecord], lost: set[int]) -> None:
    """Copy the good shards of an HDF5 cache into its parts folder; ``extract`` writes the text again."""
    parts = parts_path(store.path)
    aside = hidden(parts, "new")
    discard(parts)
    remove(aside)
    make_folder(aside)
    videos = tuple(apply((), store.planned()))
    planned = {video.class_name for video in videos}
    present = [c for c in store.classes() if c[0] in planned]
    absent = tuple(c for c in store.classes() if c[0] not in planned)
    splits = {name: split for name, split, _ in present}
    expected = {name: count for name, _, count in present}
    plan = Plan(videos, tuple(splits), splits, expected, absent)
    target, spec = ZarrStore(aside), store.spec()
    shape = (len(splits), len(spec.prompts), spec.dims["final"])
    target.create(spec, plan, np.zeros(shape, np.float32), store.shard_size)
    remove(aside / TEXT)
    kept = [replace(r, status="pending") if row in lost else r for row, r in enumerate(records)]
    carry_over(store, kept, target, plan)
    move(aside, parts)
