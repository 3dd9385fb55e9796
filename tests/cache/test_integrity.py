"""Damage is found, named and repaired; a second writer stops; what a cache holds is never run or followed."""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

from clipspm.cache import CacheWriter, open_cache
from clipspm.cache import lock as lock_module
from clipspm.cache.lock import writing
from clipspm.cache.seal import seal_path
from clipspm.cache.spec import LEDGER
from clipspm.cache.staging import stage
from clipspm.cache.transform import convert, export, merge, pack
from clipspm.cache.verify import repair, verify
from clipspm.errors import ClipspmError, UsageError
from tests.support.caches import (
    FORMATS,
    IDS,
    NUMBER,
    SPEC,
    TEXT,
    everything,
    fill,
    flip,
    make,
    plan_of,
    suffix,
    values,
)


@pytest.mark.parametrize("format", FORMATS)
def test_a_whole_cache_verifies_and_says_so(tmp_path: Path, format: str) -> None:
    path = make(tmp_path / suffix(format), format)
    report = verify(path)
    assert report.ok and report.findings == () and report.statuses == {"ok": 10, "failed": 1}
    line = subprocess.run(
        ["sha256sum", "-c", "--strict", seal_path(path).name],
        cwd=seal_path(path).parent,
        capture_output=True,
        text=True,
    )
    assert line.returncode == 0, line.stderr


@pytest.mark.parametrize("format", ["zarr", pytest.param("hdf5", marks=pytest.mark.slow)])
def test_every_flipped_bit_is_reported(tmp_path: Path, format: str) -> None:
    """50 random places, 20 of them in what is no feature: metadata, ledger, seal."""
    path = make(tmp_path / "whole" / suffix(format), format)
    files = everything(path)
    rng = random.Random(7)
    small = [f for f in files if "layers" not in f.parts or f.name == "zarr.json"]
    for number in range(50):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path.parent, copy)
        # the larger the file, the likelier; small ones get their share
        file = (
            rng.choice(small) if number % 5 < 2 else rng.choices(files, [f.stat().st_size for f in files])[0]
        )
        target = copy / file.relative_to(path.parent)
        size = 64 if file.suffix == ".sha256" else target.stat().st_size  # the name there counts for nothing
        bit = rng.randrange(size * 8)
        flip(target, bit)
        report = verify(copy / path.name)
        assert not report.ok and report.findings, f"bit {bit} of {file.name} was not noticed"


@pytest.mark.parametrize("part", ["truncated", "removed", "added", "empty folder", "swapped", "no seal"])
def test_other_damage_is_reported(tmp_path: Path, part: str) -> None:
    path = make(tmp_path / "c.zarr")
    chunks = sorted(p for p in (path / "layers").rglob("*") if p.is_file() and p.name != "zarr.json")
    if part == "truncated":
        chunks[0].write_bytes(chunks[0].read_bytes()[:-9])
    elif part == "removed":
        chunks[0].unlink()
    elif part == "added":
        (path / "layers" / "final" / "extra").write_text("x")
    elif part == "empty folder":
        (path / "layers" / "final" / "c" / "9").mkdir()
        repair(verify(path))
        assert make(path) == path and verify(path).ok
        (path / "other").mkdir()
    elif part == "swapped":
        first, second = chunks[0], chunks[1]
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    else:
        seal_path(path).unlink()
    report = verify(path)
    assert not report.ok
    if part in ("truncated", "removed", "swapped"):
        assert report.shards


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_refused_by_readers_and_repaired_by_the_next_extraction(
    tmp_path: Path, format: str
) -> None:
    path = make(tmp_path / suffix(format), format)
    whole = open_cache(path)
    expected = {layer: whole.features(layer) for layer in SPEC.layers}
    if format == "zarr":
        flip(path / "layers" / "final" / "c" / "1" / "0" / "0" / "0", 100)
    else:
        data = path.read_bytes()
        row = expected["final"][4].tobytes()[:16]  # in shard 1
        flip(path, data.index(row) * 8 + 3)
    with pytest.raises(ClipspmError, match="shard 1 of layer final is damaged.*verify.*--repair"):
        open_cache(path).features("final")
    partial = open_cache(path).require(("train",), allow_partial=True)
    assert [v.id for v in partial.good] == [i for i in IDS if i not in ("v03", "v04", "v05", "v06", "v07")]
    np.testing.assert_array_equal(partial.features("1"), expected["1"][[0, 1, 2, 7, 8, 9]])
    report = verify(path)
    assert report.shards == (1,)
    assert "4 videos are queued" in repair(report)
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, format=format, shard_size=4)  # type: ignore[arg-type]
    assert writer.pending_shards() == [(1, [4, 5, 6, 7])]
    fill(writer, number=NUMBER)
    writer.finish()
    assert verify(path).ok
    assert open_cache(path).videos == whole.videos
    for layer in SPEC.layers:
        np.testing.assert_array_equal(open_cache(path).features(layer), expected[layer])
    np.testing.assert_array_equal(open_cache(path).text(templates=True), TEXT)


def test_a_damaged_ledger_line_is_named_and_its_shard_queued(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    expected = (path / LEDGER).read_bytes()
    (path / LEDGER).write_bytes(expected.replace(b'"frames": [9', b'"frames": [8', 1))
    seal_path(path).unlink()  # even if nothing but the line's own digest speaks against it
    with pytest.raises(ClipspmError, match=r"ledger is damaged \(line 2\).*--repair"):
        open_cache(path)
    report = verify(path)
    assert report.lines == (2,)  # the first is of the texts
    repair(report)
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4)
    assert [shard for shard, _ in writer.pending_shards()] == [0]
    fill(writer, number=NUMBER, failing={"v03"})
    writer.finish()
    assert (path / LEDGER).read_bytes() == expected and verify(path).ok


def test_bad_values_are_found_by_video(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4)
    for shard, rows in writer.pending_shards():
        features = {layer: np.stack([values(r, layer) for r in rows]) for layer in SPEC.layers}
        if shard == 0:
            features["final"][1, 0, 2, 3] = np.nan
        if shard == 2:
            features["1"][0, 1, 3] = 0.25
        outcomes = {row: replace(writer.records[row], status="ok", frames=9) for row in rows}
        writer.commit(shard, outcomes, features)
    writer.finish()
    report = verify(path)
    assert report.shards == (0, 2)
    problems = {finding.where.split("video ")[1]: finding.problem for finding in report.findings}
    assert "NaN" in problems["'v01'"] and "all the same" in problems["'v08'"]


def test_damaged_metadata_is_said_and_not_repaired(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    spec = path / "spec.json"
    spec.write_text(spec.read_text().replace('"created_with": ""', '"created_with": "x"'))
    with pytest.raises(ClipspmError, match=r"spec\.json has changed since the cache was finished"):
        open_cache(path)
    with pytest.raises(ClipspmError, match=r"spec\.json is damaged.*--overwrite"):
        repair(verify(path))


@pytest.mark.parametrize("name", ["spec.json", "classes.json", "videos.jsonl", "layers/final/zarr.json"])
def test_a_writer_says_in_one_line_what_it_cannot_read(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "c.zarr")
    (path / name).write_text("hello\n")
    with pytest.raises(ClipspmError, match="has changed since the cache was finished"):
        make(path)
    seal_path(path).unlink()
    if name == "classes.json":  # of a cache that is still growing: written again from the plan
        make(path)
        assert verify(path).ok
        return
    with pytest.raises(ClipspmError, match="cannot be read as a cache.*--overwrite") as caught:
        make(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["zarr.json", "chunk"])
def test_damaged_text_is_made_again(tmp_path: Path, where: str) -> None:
    path = make(tmp_path / "c.zarr")
    files = [
        p for p in (path / "text").rglob("*") if p.is_file() and (p.name == "zarr.json") == (where != "chunk")
    ]
    flip(files[0], 377)
    report = verify(path)
    assert not report.ok and report.shards == ()
    assert "0 videos are queued" in repair(report)
    make(path)
    assert verify(path).ok
    np.testing.assert_array_equal(open_cache(path).text(templates=True), TEXT)


def test_an_incomplete_split_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    fill(CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4), number=NUMBER, shards=2)
    cache = open_cache(path)
    with pytest.raises(
        ClipspmError, match="3 of 11 videos .train. are not extracted yet, the first is 'v08'"
    ):
        cache.require(("train",))
    assert len(cache.require(("train",), allow_partial=True).good) == 8
    assert cache.require(("val", "test")) is cache
    report = verify(path)
    assert not report.ok and "3 videos are still to be extracted" in report.findings[0].problem


# ------------------------------------------------------------------------------------ killed in between


def _make_and_die(path: Path, format: str, at: int) -> None:
    """Write a cache, but end like a killed process right before the ``at``-th rename, flush or removal."""
    count = 0

    def dying(plain):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            if count > at:
                os._exit(9)
            return plain(*args, **kwargs)

        return call

    for place, names in (
        (os, ("fsync", "replace", "rename", "unlink")),
        (Path, ("rename", "replace", "unlink")),
    ):
        for name in names:
            setattr(place, name, dying(getattr(place, name)))
    make(path, format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("at", range(0, 64, 3))
def test_a_writer_killed_before_any_file_operation_loses_nothing(
    tmp_path: Path, format: str, at: int
) -> None:
    """The next writer ends with the same bytes as one that was never killed."""
    whole = make(tmp_path / "whole" / suffix(format), format)
    path = tmp_path / "killed" / suffix(format)
    child = multiprocessing.get_context("fork").Process(target=_make_and_die, args=(path, format, at))
    child.start()
    child.join()
    make(path, format)
    assert verify(path).ok
    for file in everything(whole):
        other = path.parent / file.relative_to(whole.parent)
        assert other.read_bytes() == file.read_bytes(), file.name
    assert len(everything(path)) == len(everything(whole))
    assert {p.name for p in path.parent.iterdir()} <= {path.name, path.name + ".sha256"}


def test_staged_shards_of_other_processes_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4)
    for shard, rows in writer.pending_shards():
        outcomes = {row: replace(writer.records[row], status="ok", frames=9) for row in rows}
        stage(
            writer.staging, shard, outcomes, {k: np.stack([values(r, k) for r in rows]) for k in SPEC.layers}
        )
    again = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4)
    assert again.pending_shards() == []
    again.finish()
    assert verify(path).ok


# ------------------------------------------------------------------------------------------ two writers


def _hold(path: Path, ready, release) -> None:  # type: ignore[no-untyped-def]
    with writing(path):
        ready.set()
        release.wait(30)


def test_the_second_writer_stops_and_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(path, ready, release))
    first.start()
    assert ready.wait(30)
    with (
        pytest.raises(ClipspmError, match=rf"written by process {first.pid} on .*, started \d+ s ago"),
        writing(path),
    ):
        pass
    first.kill()  # its lock dies with it
    first.join()
    with writing(path) as news:
        assert f"took over the lock of a writer that is gone: process {first.pid}" in news
    with writing(path) as news:
        assert news == ""


def test_a_writer_on_another_host_counts_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    holder = tmp_path / ".c.zarr.writer.json"
    holder.write_text(json.dumps({"host": "node17", "pid": 4711, "started": time.time() - 60}))
    with (
        pytest.raises(ClipspmError, match=r"process 4711 on node17, started 6\d s ago \(last sign"),
        writing(path),
    ):
        pass


@pytest.mark.parametrize("seen", [-1e8, -400, 400, 1e8])
@pytest.mark.parametrize("alive", [True, False])
def test_clocks_that_differ_neither_block_for_ever_nor_let_two_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: float, alive: bool
) -> None:
    monkeypatch.setattr(lock_module, "BEAT", 0.1)
    path, holder = tmp_path / "c.zarr", tmp_path / ".c.zarr.writer.json"
    holder.write_text(json.dumps({"host": "node17", "pid": 4711, "started": time.time() + seen}))
    at = time.time() + seen
    os.utime(holder, (at, at))
    beat = threading.Timer(0.1, os.utime, (holder, (at + 0.1, at + 0.1)))
    if alive:
        beat.start()
        with pytest.raises(ClipspmError, match="whose clock differs"), writing(path):
            pass
    else:
        with writing(path) as news:
            assert "node17" in news


def test_a_link_is_the_same_cache(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "folder" / "c.zarr")
    with (
        writing(tmp_path / "folder" / "c.zarr"),
        pytest.raises(ClipspmError, match="is being written by process"),
        writing(tmp_path / "link.zarr"),
    ):
        pass


@pytest.mark.timeout(30)
@pytest.mark.parametrize("what", ["link", "pipe", "deep", "folder"])
def test_what_lies_in_the_place_of_the_holder_is_neither_followed_nor_read(tmp_path: Path, what: str) -> None:
    holder, secret = tmp_path / ".c.zarr.writer.json", tmp_path / "secret"
    secret.write_text("precious")
    if what == "link":
        holder.symlink_to(secret)
    elif what == "pipe":
        os.mkfifo(holder)
    elif what == "folder":
        holder.mkdir()
        with pytest.raises(OSError, match="directory"), writing(tmp_path / "c.zarr"):
            pass
        return
    else:
        holder.write_text("[" * 100_000)
    with writing(tmp_path / "c.zarr"):
        assert json.loads(holder.read_text())["pid"] == os.getpid()
    assert secret.read_text() == "precious"


def test_the_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "BEAT", 0.01)
    holder = tmp_path / ".c.zarr.writer.json"
    with writing(tmp_path / "c.zarr"):
        os.utime(holder, (1e9, 1e9))
        for _ in range(300):
            if holder.stat().st_mtime > 2e9 - 1e9 + 1:
                break
            time.sleep(0.01)
        assert time.time() - holder.stat().st_mtime < 60


# -------------------------------------------------------------------------------- caches that mean harm


def test_links_out_of_a_cache_are_not_followed(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    secret = tmp_path / "secret"
    chunk = path / "layers" / "final" / "c" / "0" / "0" / "0" / "0"
    secret.write_bytes(chunk.read_bytes())
    chunk.unlink()
    chunk.symlink_to(secret)
    with pytest.raises(ClipspmError, match="is a link"):
        open_cache(path).features("final")
    assert not verify(path).ok
    other = make(tmp_path / "d.zarr")
    (tmp_path / "classes").write_text((other / "classes.json").read_text())
    (other / "classes.json").unlink()
    (other / "classes.json").symlink_to(tmp_path / "classes")
    with pytest.raises(ClipspmError):
        open_cache(other)


@pytest.mark.parametrize("how", ["soft", "external", "virtual", "storage", "object"])
def test_hdf5_links_and_objects_are_refused(tmp_path: Path, how: str) -> None:
    path = make(tmp_path / "c.h5", "hdf5")
    outside = tmp_path / "outside.h5"
    shutil.copy(path, outside)
    with h5py.File(path, "r+") as file:
        shape = file["layers/final"].shape
        file.move("layers/final", "kept")
        if how == "soft":
            file["layers/final"] = h5py.SoftLink("/kept")
        elif how == "external":
            file["layers/final"] = h5py.ExternalLink(str(outside), "layers/final")
        elif how == "virtual":
            layout = h5py.VirtualLayout(shape, np.float16)
            layout[...] = h5py.VirtualSource(str(outside), "layers/final", shape)
            file.create_virtual_dataset("layers/final", layout)
        elif how == "storage":
            file.create_dataset("layers/final", shape, np.float16, external=[(str(outside), 0, 10**6)])
        else:
            file.create_dataset("layers/final", shape, h5py.string_dtype())
    with pytest.raises(ClipspmError):
        open_cache(path).features("final")


@pytest.mark.parametrize(
    "change",
    [
        {"data_type": "string"},
        {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
        {"zarr_format": 2},
        {"shape": [10**9, 2, 4, 5]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_zarr_metadata_that_asks_for_more_than_numbers_is_refused(tmp_path: Path, change: dict) -> None:
    path = make(tmp_path / "c.zarr")
    seal_path(path).unlink()
    file = path / "layers" / "final" / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ClipspmError):
        open_cache(path).features("final")


HOSTILE = [
    "../../etc/passwd",
    "/etc/passwd",
    "a\nb",
    "x ( ) [ ] # & ! + ; 'q'",
    "\udcff\udcfe",
    "é" * 200,
    "",
    "CON",
    "\u2028",
]


@pytest.mark.parametrize("format", FORMATS)
def test_ids_are_only_ever_text(tmp_path: Path, format: str) -> None:
    path = tmp_path / suffix(format)
    number = {name: i for i, name in enumerate(HOSTILE)}
    writer = CacheWriter(path, SPEC, plan_of(HOSTILE), TEXT, format=format, shard_size=2)  # type: ignore[arg-type]
    fill(writer, number=number)
    writer.finish()
    assert verify(path).ok
    assert [v.id for v in open_cache(path).videos] == HOSTILE
    assert {p.name for p in tmp_path.iterdir()} <= {path.name, path.name + ".sha256"}


def test_a_layer_named_like_a_path_is_refused(tmp_path: Path) -> None:
    spec = replace(SPEC, layers=("../x", "final"), dims={"../x": 3, "final": 5})
    with pytest.raises(ClipspmError, match="not a layer name"):
        CacheWriter(tmp_path / "c.zarr", spec, plan_of(["a"]), TEXT)


# ----------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_convert_loses_nothing(tmp_path: Path, source: str, target: str) -> None:
    first = make(tmp_path / f"a{suffix(source)}", source)
    second = convert(first, tmp_path / f"b{suffix(target)}")
    back = convert(second, tmp_path / f"c{suffix(source)}")
    one, two = open_cache(first), open_cache(second)
    assert (one.spec, one.videos, one.class_splits) == (two.spec, two.videos, two.class_splits)
    for layer in SPEC.layers:
        np.testing.assert_array_equal(one.features(layer), two.features(layer))
    for a, b in zip(everything(first)[:-1], everything(back)[:-1], strict=True):
        assert a.read_bytes() == b.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        convert(first, second)


def test_merge_puts_parts_together(tmp_path: Path) -> None:
    make(tmp_path / "a.zarr", "zarr", IDS[:6])  # v03 failed here
    make(tmp_path / "b.h5", "hdf5", IDS[2:], failing={"v09"})
    merged = open_cache(merge([tmp_path / "a.zarr", tmp_path / "b.h5"], tmp_path / "m.zarr"))
    assert verify(merged.path).ok
    by_id = {v.id: v.status for v in merged.videos}
    assert sorted(by_id) == IDS and by_id["v03"] == "ok" and by_id["v09"] == "failed"
    for row, video in enumerate(merged.good):
        np.testing.assert_array_equal(merged.features("final")[row], values(NUMBER[video.id], "final"))
    other = CacheWriter(tmp_path / "o.zarr", replace(SPEC, frames=2), plan_of(["a"]), TEXT)
    with pytest.raises(ClipspmError, match="differ in frames"):
        merge([tmp_path / "a.zarr", other.path], tmp_path / "x.zarr")
    make(tmp_path / "n.zarr", "zarr", IDS[:2])
    wrong = CacheWriter(tmp_path / "w.zarr", SPEC, plan_of(IDS[:2]), TEXT, shard_size=4)
    fill(wrong, number={"v00": 5, "v01": 6})
    with pytest.raises(ClipspmError, match="video 'v00' has different features in"):
        merge([tmp_path / "n.zarr", wrong.path], tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_pack_drops_what_failed(tmp_path: Path, format: str) -> None:
    path = make(tmp_path / suffix(format), format)
    packed = open_cache(pack(path, tmp_path / f"p{suffix(format)}"))
    assert len(packed.videos) == len(packed.good) == 10 and len(packed.shards) == 1
    np.testing.assert_array_equal(packed.features("1"), open_cache(path).features("1"))
    assert verify(packed.path).ok


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_export_is_readable_without_this_package(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "c.zarr")
    file = export(path, tmp_path / f"e.{kind}")
    found = dict(np.load(file, allow_pickle=False)) if kind == "npz" else load_file(file)
    cache = open_cache(path)
    np.testing.assert_array_equal(found["features.final"], cache.features("final"))
    np.testing.assert_array_equal(found["text"], TEXT)
    assert [cache.class_names[i] for i in found["labels"]] == [v.class_name for v in cache.good]
    with pytest.raises(UsageError, match=r"\.npz or \.safetensors"):
        export(path, tmp_path / "e.csv")


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_what_is_not_finite_is_not_exported(tmp_path: Path, kind: str) -> None:
    writer = CacheWriter(tmp_path / "c.zarr", SPEC, plan_of(IDS), TEXT, shard_size=4)
    for shard, rows in writer.pending_shards():
        outcomes = {row: replace(writer.records[row], status="ok") for row in rows}
        features = {layer: np.stack([values(row, layer) for row in rows]) for layer in SPEC.layers}
        features["final"][:, 0, 0, 0] = np.inf if 5 in rows else 1
        writer.commit(shard, outcomes, features)
    path = writer.finish()
    file = tmp_path / f"e.{kind}"
    with pytest.raises(ClipspmError, match=r"NaN or infinite values \(features.final, video 'v04'\)"):
        export(path, file)
    assert not file.exists()


def test_nothing_is_written_into_a_cache(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one.zarr"), make(tmp_path / "other.h5", "hdf5")
    (tmp_path / "linked").symlink_to(one)
    for place in (one / "x", one / "layers" / "y", tmp_path / "linked" / "x"):
        for call in (convert, pack):
            with pytest.raises(UsageError, match=r"would lie inside the cache .*one.zarr: name another path"):
                call(other, place.with_suffix(".zarr"))
        with pytest.raises(UsageError, match="would lie inside"):
            export(other, place.with_suffix(".npz"))
        with pytest.raises(UsageError, match="would lie inside"):
            merge([other, one], place.with_suffix(".h5"))
    assert verify(one).ok


def test_an_hdf5_cache_may_be_renamed_with_its_seal(tmp_path: Path) -> None:
    path = make(tmp_path / "c.h5", "hdf5")
    moved = path.rename(tmp_path / "d.h5")
    seal_path(path).rename(seal_path(moved))
    assert verify(moved).ok
    flip(moved, 8 * 3000)
    assert not verify(moved).ok
    flip(moved, 8 * 3000)
    assert verify(moved).ok


# ------------------------------------------------------------------------------------------------ a full disk


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_stops_cleanly_and_the_run_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 330_000)
        path = disk / "c.zarr"
        ids = [f"v{i:03d}" for i in range(60)]
        number = {name: i for i, name in enumerate(ids)}
        with pytest.raises(ClipspmError, match="disk is full.*goes on where it stopped"):
            fill(CacheWriter(path, SPEC, plan_of(ids), TEXT, shard_size=4), number=number)
        ballast.unlink()
        writer = CacheWriter(path, SPEC, plan_of(ids), TEXT, shard_size=4)
        fill(writer, number=number)
        writer.finish()
        assert verify(path).ok and len(open_cache(path).good) == 60
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
