"""A finished cache is readable with nothing but Zarr or h5py, rows named, without a warning."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import h5py
import numpy as np
import pytest
import zarr

from clipspm.cache import CacheWriter, Plan, VideoRecord, open_cache
from clipspm.cache.seal import broken
from clipspm.cache.transform import convert, pack
from clipspm.cache.verify import repair, verify
from tests.support.caches import FORMATS, IDS, OF_0_2, SPEC, TEXT, fill, make, suffix

NAMES = ("fingerprint", "class_names", "class_splits", "video_ids", "labels")


@contextmanager
def plainly(path: Path) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """The facts and the container, read by the container's own library with warnings as errors."""
    with warnings.catch_warnings(action="error"):
        if path.is_dir():
            group = zarr.open(path, mode="r")
            yield dict(group.attrs), group
            return
        with h5py.File(path, "r") as file:
            facts: dict[str, Any] = dict(file.attrs)
            for name in NAMES[1:]:
                data = file[name]
                facts[name] = list(
                    data[...] if name == "labels" else data.asstr(errors="surrogateescape")[...]
                )
            yield facts, file


@pytest.mark.parametrize("format", FORMATS)
def test_the_container_alone_says_what_its_rows_are(tmp_path: Path, format: str) -> None:
    path = make(tmp_path / suffix(format), format)
    cache = open_cache(path)
    with plainly(path) as (facts, container):
        assert set(facts) == set(NAMES)
        assert facts["fingerprint"] == cache.spec.fingerprint
        assert tuple(facts["class_names"]) == cache.class_names
        assert facts["class_splits"] == ["train", "train"]
        assert facts["video_ids"] == [video.id for video in cache.videos] == IDS
        labels = np.asarray(facts["labels"])
        assert [i for i, label in zip(IDS, labels, strict=True) if label == -1] == ["v03"]  # it failed
        assert [facts["class_names"][i] for i in labels[labels >= 0]] == [v.class_name for v in cache.good]
        np.testing.assert_array_equal(container["layers/final"][...][labels >= 0], cache.features("final"))
        np.testing.assert_array_equal(container["text"][...].mean(1, dtype=np.float32), cache.text())
        assert {"layers", "text"} <= set(container)
        assert set(container["layers"]) == {"1", "final"}
        if format == "zarr":
            assert [name for name, _ in container.members()] and container.tree()


def test_both_containers_and_copies_say_the_same(tmp_path: Path) -> None:
    first = make(tmp_path / "a.zarr")
    there = convert(first, tmp_path / "b.h5")
    back = convert(there, tmp_path / "c.zarr")
    direct = make(tmp_path / "d.h5", "hdf5")
    found = []
    for path in (first, there, back, direct):
        with plainly(path) as (facts, _):
            found.append(facts)
    assert all(facts == found[0] for facts in found)
    assert (first / "zarr.json").read_bytes() == (back / "zarr.json").read_bytes()
    assert there.read_bytes() == direct.read_bytes()
    with plainly(pack(first, tmp_path / "packed.h5")) as (facts, _):
        assert -1 not in facts["labels"] and "v03" not in facts["video_ids"]


@pytest.mark.parametrize("format", FORMATS)
def test_names_may_hold_anything(tmp_path: Path, format: str) -> None:
    ids = ["größe", os.fsdecode(b"\xff\xfe"), "\ud800", "a\nb", "日本"]
    videos = tuple(VideoRecord(name, name, ("wave", "run")[i % 2], "train") for i, name in enumerate(ids))
    plan = Plan(videos, ("wave", "run"), {"wave": "train", "run": "train"})
    writer = CacheWriter(tmp_path / suffix(format), SPEC, plan, TEXT, format=format)  # type: ignore[arg-type]
    fill(writer, number={name: i for i, name in enumerate(ids)})
    path = writer.finish()
    assert verify(path).ok
    if format == "zarr":
        with plainly(path) as (facts, _):
            assert facts["video_ids"] == ids
        return
    with h5py.File(path) as file:
        read = [value.decode("utf-8", "surrogateescape") for value in file["video_ids"][...]]
    assert read[:2] + read[3:] == ids[:2] + ids[3:]


@pytest.mark.parametrize("format", FORMATS)
def test_what_they_say_is_sealed(tmp_path: Path, format: str) -> None:
    path = make(tmp_path / suffix(format), format)
    assert verify(path).ok
    file = path / "zarr.json" if format == "zarr" else path
    data = file.read_bytes()
    assert b"v07" in data
    place = data.rindex(b"v07")
    file.write_bytes(data[:place] + b"v77" + data[place + 3 :])
    assert not verify(path).ok and broken(path)


def test_a_cache_says_so_only_while_it_is_finished(tmp_path: Path) -> None:
    path = make(tmp_path / "c.zarr")
    finished = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    chunk = next(p for p in (path / "layers" / "final" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    repair(verify(path))
    with plainly(path) as (facts, _):
        assert facts == {}
    make(path)
    assert {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()} == finished


@pytest.mark.parametrize("format", FORMATS)
def test_caches_of_version_0_2_are_read_and_learn_it_when_copied_or_extended(
    tmp_path: Path, format: str
) -> None:
    with ZipFile(OF_0_2) as archive:
        archive.extractall(tmp_path)
    old = tmp_path / ("old.zarr" if format == "zarr" else "old.h5")
    new = make(tmp_path / suffix(format), format)
    assert verify(old).ok and open_cache(old).videos == open_cache(new).videos
    for layer in SPEC.layers:
        np.testing.assert_array_equal(open_cache(old).features(layer), open_cache(new).features(layer))
    with plainly(new) as (facts, _):
        wanted = facts
    with plainly(convert(old, tmp_path / f"copy-{suffix(format)}")) as (facts, _):
        assert facts == wanted
    make(old, format)  # nothing is left to do
    assert verify(old).ok
    if format == "zarr":  # releases of zarr order the keys differently
        assert json.loads((old / "zarr.json").read_text()) == json.loads((new / "zarr.json").read_text())
