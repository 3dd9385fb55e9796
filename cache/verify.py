"""Read a cache again, every byte of it, and say what is not as it should be.

Damage is looked for at three levels: the seal (any byte of any file), the ledger's own digests (which shard),
and the values (NaN, infinity, vectors that are one number throughout).
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

_LOOK_LIMIT = 3600.0  # seconds that looking into a damaged HDF5 file may take


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: ``where`` (file, ledger line, shard or video) and what."""

    where: str
    problem: str


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found. ``shards``: the damaged ones; ``lines``: damaged lines of the ledger;
    ``statuses``: videos by status; ``readable``: whether the metadata could be understood."""

    path: Path
    sealed: bool
    findings: tuple[Finding, ...]
    shards: tuple[int, ...]
    lines: tuple[int, ...]
    statuses: dict[str, int]
    readable: bool

    @property
    def ok(self) -> bool:
        """Complete, sealed and undamaged."""
        return self.sealed and not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
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
class _Inside:
    """What looking into the container found."""

    findings: tuple[Finding, ...]
    shards: tuple[int, ...] = ()
    lines: tuple[int, ...] = ()
    statuses: tuple[tuple[str, int], ...] = ()
    readable: bool = False


def verify(path: str | Path) -> Report:
    """Re-read everything of the cache at ``path``; a cache that is still growing is looked at as it is."""
    path = grown(Path(path))
    store = find_store(path)
    sealed = seal_path(path).is_file()
    findings = [Finding(name, problem) for name, problem in broken(path)]
    if not sealed:
        links = [name for name, file in irregular(path) if file.is_symlink() or not file.is_dir()]
        findings += [Finding(name, f"is {IRREGULAR}: a cache holds none") for name in links]
    inside = _look_apart(path) if findings and isinstance(store, Hdf5Store) else _look(path)
    findings += inside.findings
    if not sealed:
        pending = dict(inside.statuses).get("pending", 0)
        todo = f"{pending} videos are still to be extracted" if pending else "it was never finished"
        findings.append(
            Finding(seal_path(path).name, f"is missing ({todo}): run the same `clipspm extract` again")
        )
    return Report(
        path, sealed, tuple(findings), inside.shards, inside.lines, dict(inside.statuses), inside.readable
    )


def grown(path: Path) -> Path:
    """``path``, or the parts of an HDF5 cache that is not assembled yet."""
    return parts_path(path) if not path.exists() and parts_path(path).is_dir() else path


def _look_apart(path: Path) -> _Inside:
    """:func:`_look` in a process of its own: a damaged HDF5 file can take the library down."""
    with ProcessPool(max_workers=1, context=get_context("spawn")) as pool:
        try:
            found: _Inside = pool.schedule(_look, args=[path], timeout=_LOOK_LIMIT).result()
        except (ProcessExpired, FutureTimeout, BrokenProcessPool):
            found = _Inside((Finding(path.name, "is damaged so that it cannot be looked into"),))
    return found


def _look(path: Path) -> _Inside:
    store = find_store(path)
    try:
        entries, lines = read_ledger(store.blob(LEDGER))
        spec, ranges = store.spec(), store.shards()
        records = apply(entries, store.planned())
        unsound = tuple(Finding(*found) for found in problems(store, spec, records, store.classes()))
    except Exception as error:  # damaged bytes can fail in any way
        why = plain(error)
        return _Inside((Finding(path.name, f"its metadata cannot be read ({why})"),))
    if unsound:
        return _Inside(unsound)
    findings = [
        Finding(f"{LEDGER}, line {line}", "is damaged: what it said is not data any more") for line in lines
    ]
    sums, bad = digests(entries), []
    findings += _look_at_text(store, spec, sums.get(TEXT_SHARD, {}).get(TEXT))
    for shard, rows in track(enumerate(ranges), "verifying", len(ranges), "shards"):
        good = [row for row in rows if records[row].status == "ok"]
        if not good:
            continue
        found = [
            finding
            for layer in spec.layers
            for finding in _look_at_shard(store, layer, shard, rows, good, records, sums.get(shard, {}))
        ]
        findings += found
        if found:
            bad.append(shard)
    for shard in _damaged_stages(store):
        findings.append(
            Finding(f"{STAGED}, shard {shard}", "is not what a worker left there: it is done again")
        )
    statuses = Counter(record.status for record in records)
    return _Inside(tuple(findings), tuple(bad), tuple(lines), tuple(statuses.items()), True)


def _damaged_stages(store: Store) -> Iterator[int]:
    """The shards that wait to be taken in and are not what was staged."""
    place = place_for(store.path, store.spec(), store.planned(), store.shard_size)
    for shard in staged(place):
        try:
            read_staged(place, shard)
        except DamagedStage:
            yield shard


def _look_at_text(store: Store, spec: CacheSpec, digest: str | None) -> list[Finding]:
    try:
        for found in text_problems(store, spec, store.classes()):
            return [Finding(*found)]
        text = store.array(TEXT)
    except Exception as error:
        return [Finding(TEXT, f"cannot be read ({' '.join(str(error).split())})")]
    if values_digest(text) != digest:
        return [Finding(TEXT, "does not match its digest")]
    return [] if np.isfinite(text).all() else [Finding(TEXT, "holds NaN or infinite values")]


def _look_at_shard(
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
    """Queue what ``report`` found damaged for extraction; returns what to do next, in one line.

    A damaged Zarr cache is changed in place; of a damaged HDF5 cache, the good shards are copied to
    ``PATH.parts``, where ``extract`` goes on. Raises :class:`ClipspmError` where the metadata is lost.
    """
    if report.ok:
        return f"{report.path} is whole: nothing to repair"
    store = find_store(report.path)
    strays = {name for name, _ in irregular(report.path)}
    metadata = [f.where for f in report.findings if _is_metadata(f.where) and f.where not in strays]
    if not report.readable or (isinstance(store, ZarrStore) and metadata):
        what = metadata[0] if metadata else "its metadata"
        raise ClipspmError(
            f"{report.path}: {what} is damaged, and the shards mean nothing without it: extract again with "
            "--overwrite"
        )
    cache, parts = report.path, parts_path(report.path)
    if isinstance(store, Hdf5Store) and parts.exists():
        return (
            f"{parts} grows already, extended or repaired: run the same `clipspm extract` again, it goes on "
            f"there; `clipspm cache verify {parts}` looks at it"
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
                remove(cache / TEXT)  # extract makes it again
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
    """Copy what is good of an HDF5 cache into its parts; the text is left out, ``extract`` makes it again."""
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
