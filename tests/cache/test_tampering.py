"""Wrong data is never taken over as right, nothing of somebody else's is removed, kills leave no dead end."""

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from clipspm.cache import CacheWriter, open_cache
from clipspm.cache import disk as disk_module
from clipspm.cache import store as store_module
from clipspm.cache.disk import DiskFull, hidden
from clipspm.cache.ledger import Entry
from clipspm.cache.seal import seal_path, write_seal
from clipspm.cache.spec import LEDGER, Plan
from clipspm.cache.staging import is_staged, read_staged, stage
from clipspm.cache.store import ZarrStore
from clipspm.cache.transform import convert, export, merge, pack
from clipspm.cache.verify import repair, verify
from clipspm.cache.writer import parts_path
from clipspm.errors import ClipspmError, UsageError
from tests.support.caches import IDS, NUMBER, SPEC, TEXT, everything, fill, flip, make, plan_of, suffix

MORE = [*IDS, "v11"]


def contents(path: Path) -> dict[str, bytes]:
    base = path if path.is_dir() else path.parent
    return {p.relative_to(base).as_posix(): p.read_bytes() for p in everything(path)}


def chunks(path: Path, key: str = "layers/final") -> list[Path]:
    return sorted(p for p in (path / key / "c").rglob("*") if p.is_file())


def damage_chunks(path: Path, damage: str) -> None:
    """Swap the first two shards, whose checksums stay right, or flip a bit of the first."""
    first, second = chunks(path)[:2]
    if damage == "swapped":
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)
    else:
        flip(first, 99)


# texts


@pytest.mark.parametrize("damage", ["removed", "flipped", "zeros"])
@pytest.mark.parametrize("sealed", [True, False])
def test_damaged_texts_are_noticed_and_made_again(tmp_path: Path, damage: str, sealed: bool) -> None:
    path, whole = make(tmp_path / "c.zarr"), contents(make(tmp_path / "whole" / "c.zarr"))
    chunk = chunks(path, "text")[0]
    if damage == "removed":
        shutil.rmtree(path / "text" / "c")
    elif damage == "flipped":
        flip(chunk, 9)
    else:
        store = ZarrStore(path)
        store._open("text", mode="r+")[...] = 0  # with a right checksum
    if not sealed:
        seal_path(path).unlink()
    assert any(f.where.startswith("text") for f in verify(path).findings)
    for use in (
        lambda: open_cache(path).text(),
        lambda: convert(path, tmp_path / "d.h5"),
        lambda: export(path, tmp_path / "e.npz"),
    ):
        with pytest.raises(ClipspmError):
            use()
    if sealed:
        repair(verify(path))
    make(path)
    assert contents(path) == whole


def test_texts_that_another_device_computed_a_little_differently_stay(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    before = contents(path)
    CacheWriter(path, SPEC, plan_of(IDS), TEXT * np.float32(1.0000001), shard_size=4).finish()
    assert contents(path) == before


# features


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@pytest.mark.parametrize("damage", ["swapped", "flipped"])
def test_damaged_shards_are_not_taken_into_a_larger_cache(tmp_path: Path, format: str, damage: str) -> None:
    path = make(tmp_path / suffix(format), format)
    if format == "zarr":
        damage_chunks(path, damage)
    else:
        with h5py.File(path, "r+") as file:
            values = file["layers/final"][:]
            file["layers/final"][:] = values[::-1] if damage == "swapped" else values + 1
    with pytest.raises(ClipspmError, match=r"shard \d of layer final is damaged .*--repair"):
        CacheWriter(path, SPEC, plan_of(MORE), TEXT, format=format, shard_size=4)  # type: ignore[arg-type]
    assert not verify(path).ok


@pytest.mark.parametrize("damage", ["swapped", "flipped"])
def test_a_damaged_shard_is_not_taken_over_by_a_retry(tmp_path: Path, damage: str) -> None:
    path = make(tmp_path / "c.zarr")  # v03, of the first shard, failed
    damage_chunks(path, damage)
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4, retry_failed=True)
    with pytest.raises(ClipspmError, match=r"shard 0 of layer \w+ is damaged .*--repair"):
        fill(writer, number=NUMBER)


def test_a_repair_of_hdf5_goes_on_where_its_damaged_shard_holds_a_failed_video(tmp_path: Path) -> None:
    path = make(tmp_path / "c.h5", "hdf5")
    whole = contents(path)
    with h5py.File(path, "r") as file:
        place = file["layers/final"].id.get_chunk_info(0).byte_offset
    flip(path, 8 * place + 3)
    report = verify(path)
    assert 0 in report.shards
    repair(report)
    make(path, "hdf5")
    assert contents(path) == whole


def test_a_torn_line_and_a_damaged_shard_are_repaired_together(tmp_path: Path) -> None:
    path, whole = make(tmp_path / "c.zarr"), contents(make(tmp_path / "whole" / "c.zarr"))
    (path / LEDGER).write_bytes((path / LEDGER).read_bytes()[:-10])
    flip(chunks(path)[0], 99)
    repair(verify(path))
    make(path)
    assert contents(path) == whole


@pytest.mark.parametrize("how", ["no bytes", "PK", "header", "flipped"])
def test_a_damaged_staged_shard_is_done_again(tmp_path: Path, how: str) -> None:
    path, whole = tmp_path / "c.zarr", contents(make(tmp_path / "whole" / "c.zarr", failing=set()))
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4)
    other = CacheWriter(tmp_path / "o.zarr", SPEC, plan_of(IDS), TEXT, shard_size=4)
    fill(other, number=NUMBER, shards=1)
    good = {k: ZarrStore(other.work).rows(f"layers/{k}", 0, 4) for k in SPEC.layers}
    stage(writer.staging, 0, {row: other.records[row] for row in range(4)}, good)
    file = writer.staging / "0" / "final.npy"
    data = file.read_bytes()
    file.write_bytes(
        {
            "no bytes": b"",
            "PK": b"PK" + data,
            "header": data[:12] + b"(((" + data[15:],
            "flipped": data[:-1] + b"!",
        }[how]
    )
    assert [f.where for f in verify(path).findings] == ["staged, shard 0", "SHA256SUMS"]
    if how == "flipped":
        repair(verify(path))
        assert not (writer.staging / "0").exists()
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4)
    assert [shard for shard, _ in writer.pending_shards()] == [0, 1, 2]
    fill(writer, number=NUMBER)
    writer.finish()
    assert contents(path) == whole


def test_a_link_in_the_place_of_staged_shards_is_not_followed(tmp_path: Path) -> None:
    path, outside = tmp_path / "c.zarr", tmp_path / "outside"
    CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4)
    (outside / "0").mkdir(parents=True)
    (outside / "0" / "entry.jsonl").write_text("mine")
    (path / "staged").symlink_to(outside)
    verify(path)
    CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4)
    repair(verify(path))
    assert (outside / "0" / "entry.jsonl").read_text() == "mine"
    assert not (path / "staged").exists()


def test_a_seal_that_names_files_elsewhere_removes_none_of_them(tmp_path: Path) -> None:
    path, outside = make(tmp_path / "c.zarr"), tmp_path / "outside"
    outside.mkdir()
    (outside / "link").symlink_to("nowhere")
    with (path / "SHA256SUMS").open("a") as seal:
        seal.writelines(f"{'0' * 64}  {name}\n" for name in (outside / "link", "../outside/link"))
    repair(verify(path))
    assert (outside / "link").is_symlink()


# what is not of the cache


def test_a_link_in_a_cache_is_found_and_never_sealed_in(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    whole = contents(path)
    (path / "layers" / "zz").symlink_to("/etc/passwd")
    report = verify(path)
    assert any(f.where == "layers/zz" and "not a regular file" in f.problem for f in report.findings)
    seal_path(path).unlink()
    with pytest.raises(
        ClipspmError, match="layers/zz is not a regular file and does not belong there: move it away"
    ):
        make(path)
    repair(report)
    make(path)
    assert contents(path) == whole


@pytest.mark.parametrize("name", ["videos.jsonl", "layers/final", "layers/final/c/0"])
def test_links_are_refused_under_relative_names_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = make(tmp_path / "c.zarr")
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    seal_path(path).unlink()
    monkeypatch.chdir(tmp_path)
    for place in (Path("c.zarr"), path):
        with pytest.raises(ClipspmError, match="is a link"):
            open_cache(place).features("final")


def test_a_linked_seal_is_not_followed(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    (tmp_path / "secret").write_text("user  hunter2\n")
    seal_path(path).unlink()
    seal_path(path).symlink_to(tmp_path / "secret")
    report = verify(path)
    assert not report.ok and "hunter2" not in str(report.findings)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", [LEDGER, "layers/final/c/0/0/0/0"])
def test_a_pipe_in_a_cache_hangs_nobody(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "c.zarr")
    (path / name).unlink()
    os.mkfifo(path / name)
    assert not verify(path).ok
    seal_path(path).unlink()
    with pytest.raises(ClipspmError, match="not a regular file"):
        open_cache(path).features("final")


def test_texts_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "c.h5", "hdf5")
    with h5py.File(path, "r+") as file:
        del file["text"]
        file["text"] = np.zeros(10_000, np.float32)
    with pytest.raises(
        ClipspmError, match=r"text: its shape is \(10000,\), not|text is not an array of a cache"
    ):
        open_cache(path)


def test_what_lies_beside_a_cache_is_left_alone(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    for name in ("c.zarr.old", "c.zarr.new", "c.zarr.dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    make(path, ids=MORE[:-1])
    writer = CacheWriter(path, SPEC, plan_of(MORE), TEXT, shard_size=4)
    fill(writer, number={**NUMBER, "v11": 11})
    writer.finish()
    for name in ("c.zarr.old", "c.zarr.new", "c.zarr.dead"):
        assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_a_cache_of_the_other_format_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    for name, format, other in (("c.zarr", "zarr", "hdf5"), ("c.h5", "hdf5", "zarr")):
        path = make(tmp_path / name, format)
        with pytest.raises(UsageError, match="is not in the format --format"):
            make(path, other)
        assert verify(path).ok
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == [
        "c.h5", "c.h5.sha256", "c.zarr",
    ]  # fmt: skip


def test_a_cache_is_not_converted_into_itself(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    with pytest.raises(UsageError, match="would lie inside"):
        convert(path, path / "d.h5")
    assert verify(path).ok


# kills while things are removed


class Killed(BaseException):
    pass


@pytest.mark.parametrize("removed", [0, 1, 5])
def test_a_kill_while_the_parts_of_a_finished_cache_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    plain = shutil.rmtree

    def rmtree(place: Path) -> None:
        if not place.name.endswith(".dead"):
            return plain(place)
        for file in sorted(p for p in place.rglob("*") if p.is_file())[:removed]:
            file.unlink()
        raise Killed

    path = tmp_path / "c.h5"
    with monkeypatch.context() as patch:
        patch.setattr(disk_module.shutil, "rmtree", rmtree)
        with pytest.raises(Killed):
            make(path, "hdf5")
    assert verify(path).ok
    make(path, "hdf5")
    assert verify(path).ok
    assert not parts_path(path).exists() and not hidden(parts_path(path), "dead").exists()


def test_a_kill_while_overwriting_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rmtree(place: Path) -> None:
        (place / "spec.json").unlink(missing_ok=True)
        raise Killed

    path = make(tmp_path / "c.zarr")
    whole = contents(path)
    with monkeypatch.context() as patch:
        patch.setattr(disk_module.shutil, "rmtree", rmtree)
        with pytest.raises(Killed):
            CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4, overwrite=True)
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4, overwrite=True)
    fill(writer, number=NUMBER, failing={"v03"})
    writer.finish()
    assert contents(path) == whole


def test_no_room_for_hdf5_is_said_before_the_library_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "c.h5", contents(make(tmp_path / "whole" / "c.h5", "hdf5"))
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "free_bytes", lambda path: 1000)
        with pytest.raises(DiskFull, match=r"kB are needed"):
            make(path, "hdf5")
    make(path, "hdf5")
    assert contents(path) == whole


# leftovers of other runs


@pytest.mark.parametrize("other", ["videos", "settings", "shard size"])
def test_what_a_worker_of_another_run_leaves_late_is_never_data(tmp_path: Path, other: str) -> None:
    path, whole = tmp_path / "c.zarr", contents(make(tmp_path / "whole" / "c.zarr"))
    spec = replace(SPEC, resize=SPEC.resize + 1) if other == "settings" else SPEC
    ids = [f"w{name[1:]}" for name in IDS] if other == "videos" else IDS
    old = CacheWriter(path, spec, plan_of(ids), TEXT, shard_size=3 if other == "shard size" else 4)
    late = {row: replace(old.records[row], status="ok") for row in old.shards[0]}
    features = {k: np.ones((len(late), 2, 4, SPEC.dims[k]), np.float16) for k in SPEC.layers}
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4, overwrite=True)
    stage(old.staging, 0, late, features)
    assert not is_staged(writer.staging, 0)
    fill(writer, number=NUMBER, failing={"v03"})
    writer.finish()
    assert contents(path) == whole
    stage(old.staging, 0, late, features)  # even later
    assert open_cache(path).features().shape[0] == 10
    assert not verify(path).ok
    make(path)
    assert contents(path) == whole and verify(path).ok


def test_a_late_worker_does_not_bring_back_what_was_assembled(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, format="hdf5", shard_size=4)
    late = {0: replace(writer.records[0], status="failed")}
    fill(writer, number=NUMBER)
    writer.finish()
    with pytest.raises(ClipspmError, match="no longer exists"):
        stage(writer.staging, 0, late, {})
    assert not parts_path(path).exists()


def test_a_staged_shard_leads_no_read_out_of_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, shard_size=4)
    np.save(tmp_path / "outside.npy", np.zeros(3))
    folder = writer.staging / "0"
    folder.mkdir(parents=True)
    entry = Entry(0, (), (), {"../../../../outside": "0" * 64})
    (folder / "entry.jsonl").write_bytes(entry.to_line())
    with pytest.raises(ClipspmError, match="damaged") as caught:
        read_staged(writer.staging, 0)
    assert "not a layer name" in str(caught.value.__cause__)
    (folder / "entry.jsonl").unlink()
    os.mkfifo(folder / "entry.jsonl")  # nobody ever writes to it
    assert any(f.where == "staged, shard 0" for f in verify(path).findings)


# what may be removed


@pytest.mark.parametrize("kind", ["folder", "hdf5"])
def test_overwrite_spares_what_is_no_cache(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine"
    if kind == "folder":
        path.mkdir()
        (path / "spec.json").write_text("{}")
        (path / "thesis.tex").write_text("x")
    else:
        with h5py.File(path, "w") as file:
            file["a"] = 1
    for format in ("zarr", "hdf5"):
        with pytest.raises(ClipspmError, match="not look like a cache"):
            CacheWriter(path, SPEC, plan_of(IDS), TEXT, format=format, overwrite=True)  # type: ignore[arg-type]
    assert path.exists() and (kind == "hdf5" or (path / "thesis.tex").exists())


def test_a_second_repair_keeps_what_was_extracted_again(tmp_path: Path) -> None:
    path = make(tmp_path / "c.h5", "hdf5")
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        for number in (0, 4, 8):
            data[file["layers/final"].id.get_chunk_info_by_coord((number, 0, 0, 0)).byte_offset] ^= 1
    path.write_bytes(bytes(data))
    repair(verify(path))
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, format="hdf5", shard_size=4)
    assert len(writer.pending_shards()) == 3
    fill(writer, number=NUMBER, shards=2)
    assert "exists already" in repair(verify(path))
    writer = CacheWriter(path, SPEC, plan_of(IDS), TEXT, format="hdf5", shard_size=4)
    assert len(writer.pending_shards()) == 1
    fill(writer, number=NUMBER)
    writer.finish()
    assert verify(path).ok


@pytest.mark.parametrize("name", ["note.json", "layers/note.json"])
def test_a_link_with_a_name_like_metadata_is_removed(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "c.zarr")
    whole = contents(path)
    (path / name).symlink_to("/etc/passwd")
    repair(verify(path))
    assert make(path) == path and contents(path) == whole


def test_a_file_that_is_not_of_the_cache_is_never_sealed_in(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    whole = contents(path)
    (path / "layers" / "final" / "notes.txt").write_text("mine")
    repair(verify(path))
    with pytest.raises(ClipspmError, match=r"notes\.txt does not belong there: move it away"):
        make(path)
    (path / "layers" / "final" / "notes.txt").unlink()
    make(path)
    assert contents(path) == whole


# what is believed


def test_flipped_metadata_of_an_hdf5_cache_is_not_believed(tmp_path: Path) -> None:
    path = make(tmp_path / "c.h5", "hdf5")
    data = path.read_bytes()
    at = data.index(b'"v05"')
    path.write_bytes(data[: at + 1] + b"x" + data[at + 2 :])
    for use in (lambda: open_cache(path), lambda: convert(path, tmp_path / "d.zarr")):
        with pytest.raises(ClipspmError):
            use()


def test_texts_never_stand_under_other_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes change their order, and the writer dies at each of its steps in turn."""
    path = make(tmp_path / "c.zarr")
    plan = plan_of(IDS)
    turned = Plan(plan.videos, ("run", "wave"), {"run": "val", "wave": "train"})
    for step in range(9):
        copy = Path(shutil.copytree(path, tmp_path / f"{step}.zarr"))
        left = step

        def dying(plain):  # type: ignore[no-untyped-def]
            def call(*arguments):  # type: ignore[no-untyped-def]
                nonlocal left
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                return plain(*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in ("remove", "append", "write_atomically", "sync"):
                patch.setattr(store_module, name, dying(getattr(store_module, name)))
            with suppress(KeyboardInterrupt):
                CacheWriter(copy, SPEC, turned, TEXT[::-1].copy(), shard_size=4)
        try:
            found = open_cache(copy)
            texts = dict(zip(found.class_names, found.text(templates=True), strict=True))
        except ClipspmError:
            continue
        np.testing.assert_array_equal(texts["wave"], TEXT[0])
        np.testing.assert_array_equal(texts["run"], TEXT[1])


def test_merging_keeps_what_is_known_and_counts_what_is_there(tmp_path: Path) -> None:
    def part(name: str, ids: list[str], failing: set[str], shards: int) -> Path:
        writer = CacheWriter(tmp_path / name, SPEC, plan_of(ids), TEXT, shard_size=2)
        fill(writer, number=NUMBER, failing=failing, shards=shards)
        return tmp_path / name

    half, whole = part("a", IDS[:4], set(), 1), part("b", IDS[:4], {"v02"}, 9)
    assert open_cache(half).videos[2].status == "pending"
    merged = open_cache(merge([half, whole], tmp_path / "m"))
    assert [v.status for v in merged.videos if v.id == "v02"] == ["failed"]
    other = part("c", IDS[4:10], set(), 9)
    coverage = open_cache(merge([whole, other], tmp_path / "n")).coverage("train")
    assert (coverage.expected, coverage.found) == (10, 9)


def test_a_cache_that_is_not_finished_is_packed_and_exported_only_when_told_to(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "c", SPEC, plan_of(IDS), TEXT, shard_size=4)
    fill(writer, number=NUMBER, shards=1)
    for use, target in ((pack, "p"), (export, "e.npz")):
        with pytest.raises(ClipspmError, match="not complete"):
            use(tmp_path / "c", tmp_path / target)
        assert use(tmp_path / "c", tmp_path / target, allow_partial=True).exists()
    assert len(open_cache(tmp_path / "p").good) == 4


def _contiguous(file: h5py.File) -> None:
    values = file["layers/final"][...]
    del file["layers/final"]
    file.create_dataset("layers/final", data=values)


def _big_endian(file: h5py.File) -> None:
    values = file["layers/final"]
    kept, chunked = values[...].astype(values.dtype.newbyteorder(">")), values.chunks
    del file["layers/final"]
    file.create_dataset("layers/final", data=kept, chunks=chunked, fletcher32=True)


def _huge(file: h5py.File) -> None:
    values = file["layers/final"]
    shape, kind, chunked = (10**9, *values.shape[1:]), values.dtype, values.chunks
    del file["layers/final"]
    file.create_dataset("layers/final", shape, kind, chunks=chunked, fletcher32=True)


@pytest.mark.parametrize("change", [_contiguous, _big_endian, _huge])
def test_arrays_of_another_make_are_refused_before_they_are_read(tmp_path: Path, change: Any) -> None:
    path = make(tmp_path / "c.h5", "hdf5")
    with h5py.File(path, "r+") as file:
        change(file)
    write_seal(path)
    assert not verify(path).ok
    with pytest.raises(ClipspmError, match=r"not an array of a cache|its shape is"):
        open_cache(path).mapped("final").take(np.arange(2))
