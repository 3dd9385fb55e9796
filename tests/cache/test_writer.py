"""The cache: what is written is read back, in either format, and a killed writer never shows half a row."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipspm.cache import CacheSpec, CacheWriter, find_cache, list_caches, open_cache
from clipspm.cache.spec import LEDGER
from clipspm.errors import ClipspmError
from tests.support.caches import SPEC, TEXT, fill, plan_of, suffix, values


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 17),
    shard_size=st.integers(1, 8),
    failing=st.sets(st.integers(0, 16)),
    stop=st.integers(0, 4),
)
def test_round_trip_with_an_interruption(tmp_path_factory, format, count, shard_size, failing, stop) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("c") / suffix(format)
    ids = [f"v{i:02d}" for i in range(count)]
    number = {name: i for i, name in enumerate(ids)}
    bad = {f"v{i:02d}" for i in failing}
    first = CacheWriter(path, SPEC, plan_of(ids), TEXT, format=format, shard_size=shard_size)
    fill(first, number=number, failing=bad, shards=stop)  # ... and the process dies here
    second = CacheWriter(path, SPEC, plan_of(ids), TEXT, format=format, shard_size=shard_size)
    fill(second, number=number, failing=bad)
    second.finish()
    cache = open_cache(path)
    assert [v.id for v in cache.videos] == ids
    assert [v.id for v in cache.good] == [i for i in ids if i not in bad]
    assert {v.id for v in cache.videos if v.status == "failed"} == bad & set(ids)
    for layer in SPEC.layers:
        expected = [values(number[v.id], layer) for v in cache.good]
        found = np.asarray(cache.features(layer))
        assert found.shape == (len(expected), 2, 4, SPEC.dims[layer])
        if expected:
            np.testing.assert_array_equal(found, np.stack(expected))
    np.testing.assert_allclose(cache.text(), TEXT.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(cache.text(templates=True), TEXT)


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_new_videos_are_added_and_old_rows_stay(tmp_path: Path, format: str) -> None:
    path = tmp_path / suffix(format)
    number = {name: i for i, name in enumerate("abcdef")}
    writer = CacheWriter(path, SPEC, plan_of(["b", "d"]), TEXT, format=format, shard_size=2)  # type: ignore[arg-type]
    fill(writer, number=number)
    writer.finish()
    writer = CacheWriter(path, SPEC, plan_of(list("abcdef")), TEXT, format=format, shard_size=2)  # type: ignore[arg-type]
    assert [r.status for r in writer.records] == ["pending", "ok", "pending", "ok", "pending", "pending"]
    fill(writer, number=number)
    writer.finish()
    expected = np.stack([values(i, "final") for i in range(6)])
    np.testing.assert_array_equal(open_cache(path).features("final"), expected)


def test_both_formats_hold_the_same(tmp_path: Path) -> None:
    ids = [f"v{i}" for i in range(7)]
    caches = []
    for format in ("zarr", "hdf5"):
        path = tmp_path / suffix(format)
        writer = CacheWriter(path, SPEC, plan_of(ids), TEXT, format=format, shard_size=3)  # type: ignore[arg-type]
        fill(writer, number={name: i for i, name in enumerate(ids)}, failing={"v2"})
        writer.finish()
        caches.append(open_cache(path))
    zarr, hdf5 = caches
    assert zarr.spec == hdf5.spec
    assert zarr.videos == hdf5.videos
    assert zarr.class_splits == hdf5.class_splits
    for layer in SPEC.layers:
        np.testing.assert_array_equal(zarr.features(layer), hdf5.features(layer))
        assert zarr.features(layer).dtype == hdf5.features(layer).dtype == np.float16
    assert not (tmp_path / "c.h5.parts").exists()


def test_other_settings_are_refused_with_both_fingerprints(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    CacheWriter(path, SPEC, plan_of(["a"]), TEXT)
    other = replace(SPEC, frames=8, resize=32)
    with pytest.raises(ClipspmError) as caught:
        CacheWriter(path, other, plan_of(["a"]), TEXT)
    for part in (SPEC.fingerprint[:16], other.fingerprint[:16], "frames: 4 != 8", "resize: 37 != 32"):
        assert part in str(caught.value)
    CacheWriter(path, other, plan_of(["a"]), np.zeros((2, 2, 5)), overwrite=True)
    assert open_cache(path).spec == other


def test_videos_are_never_dropped_silently(tmp_path: Path) -> None:
    CacheWriter(tmp_path / "c.zarr", SPEC, plan_of(["a", "b"]), TEXT)
    with pytest.raises(ClipspmError, match="holds 1 videos that are not among"):
        CacheWriter(tmp_path / "c.zarr", SPEC, plan_of(["a"]), TEXT)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_overwrite_removes_nothing_but_caches(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious"
    kept = path / "thesis.txt" if kind == "folder" else path
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("years of work")
    with pytest.raises(ClipspmError, match="precious is"):
        CacheWriter(path, SPEC, plan_of(["a"]), TEXT, overwrite=True)
    assert kept.read_text() == "years of work"


def test_what_a_fingerprint_depends_on() -> None:
    assert replace(SPEC, model="other name", created_with="x").fingerprint == SPEC.fingerprint
    for change in (
        {"weights_sha256": "c" * 64},
        {"activation": "quick_gelu"},
        {"layers": ("final",)},
        {"mean": (0.0, 0.0, 0.0)},
        {"prompts": ("{}",)},
        {"views": 1},
        {"precision": "fp16"},
    ):
        assert replace(SPEC, **change).fingerprint != SPEC.fingerprint  # type: ignore[arg-type]
    assert CacheSpec.from_json(SPEC.to_json()) == SPEC


def test_a_torn_ledger_line_is_not_data(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    ids = ["a", "b", "c", "d"]
    number = {name: i for i, name in enumerate(ids)}
    fill(CacheWriter(path, SPEC, plan_of(ids), TEXT, shard_size=2), number=number)
    whole = (path / LEDGER).read_bytes()
    (path / LEDGER).write_bytes(whole[:-7])
    assert [v.status for v in open_cache(path).videos] == ["ok", "ok", "pending", "pending"]
    fill(CacheWriter(path, SPEC, plan_of(ids), TEXT, shard_size=2), number=number)
    assert (path / LEDGER).read_bytes() == whole


def test_changed_splits_need_no_extraction(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    fill(CacheWriter(path, SPEC, plan_of(["a", "b"]), TEXT), number={"a": 0, "b": 1})
    plan = plan_of(["a", "b"])
    moved = replace(
        plan,
        videos=tuple(replace(v, split="test" if v.class_name == "run" else "train") for v in plan.videos),
        class_splits={"wave": "train", "run": "test"},
    )
    assert CacheWriter(path, SPEC, moved, TEXT).pending_shards() == []
    cache = open_cache(path)
    assert cache.class_splits == {"wave": "train", "run": "test"}
    assert [v.split for v in cache.videos] == ["train", "test"]
    other = cache.with_splits({"wave": "val"})
    assert other.class_splits == {"wave": "val", "run": "none"}
    with pytest.raises(ClipspmError, match="'fly'"):
        cache.with_splits({"fly": "val"})


@pytest.mark.parametrize(
    "damage",
    [
        "no spec",
        "spec text",
        "spec altered",
        "newer format",
        "records text",
        "no array",
        "not a cache",
        "text file",
    ],
)
@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_an_unreadable_cache_is_one_clear_line(tmp_path: Path, format: str, damage: str) -> None:
    path = tmp_path / suffix(format)
    writer = CacheWriter(path, SPEC, plan_of(["a", "b"]), TEXT, format=format)  # type: ignore[arg-type]
    fill(writer, number={"a": 0, "b": 1})
    writer.finish()
    if format == "zarr" and damage not in ("not a cache", "text file"):
        spec, ledger = path / "spec.json", path / "videos.jsonl"
        if damage == "no spec":
            spec.unlink()
        elif damage == "spec text":
            spec.write_text("hello")
        elif damage in ("spec altered", "newer format"):
            raw = json.loads(spec.read_text())
            raw["frames" if damage == "spec altered" else "format_version"] = 99
            spec.write_text(json.dumps(raw))
        elif damage == "records text":
            ledger.write_text("hello\n")
        else:
            (path / "layers" / "final" / "zarr.json").unlink()
    elif damage == "not a cache":
        path = tmp_path / "empty"
        path.mkdir()
    elif damage == "text file":
        path = tmp_path / "notes.h5"
        path.write_text("hello")
    else:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ClipspmError) as caught:
        open_cache(path).features("final")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_unknown_layer(tmp_path: Path) -> None:
    CacheWriter(tmp_path / "c.zarr", SPEC, plan_of(["a"]), TEXT)
    with pytest.raises(ClipspmError, match="no layer '7'; it has 1, final"):
        open_cache(tmp_path / "c.zarr").features("7")


def test_newest_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    with pytest.raises(ClipspmError, match="no cache"):
        find_cache()
    for i, (name, dataset) in enumerate((("x.zarr", "folder"), ("y.zarr", "hmdb51"))):
        path = tmp_path / "caches" / name
        CacheWriter(path, replace(SPEC, dataset=dataset), plan_of(["a"]), TEXT)
        for file in path.iterdir():
            os.utime(file, (1000 + i, 1000 + i))
    assert [p.name for p in list_caches()] == ["x.zarr", "y.zarr"]
    assert find_cache().name == "y.zarr"
    assert find_cache(dataset="folder").name == "x.zarr"
    with pytest.raises(ClipspmError, match="no cache of ucf101"):
        find_cache(dataset="ucf101")
    assert find_cache(path=tmp_path / "z") == tmp_path / "z"


@pytest.mark.parametrize("name", ["c.h5", "c.hdf5", "C.H5"])
def test_caches_of_every_hdf5_name_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    writer = CacheWriter(tmp_path / "caches" / name, SPEC, plan_of(["a"]), TEXT, format="hdf5")
    fill(writer, number={"a": 0})
    path = writer.finish()
    assert list_caches() == [path]
    assert find_cache() == path
