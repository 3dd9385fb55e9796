"""A loss of power at any moment: what a cache or a run says is there is there, and the same command goes on."""

import random
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from clipspm.cache import CacheWriter, open_cache
from clipspm.cache.disk import append, make_folder, move, sync, sync_all, write_atomically, write_json
from clipspm.cache.ledger import apply, read_ledger
from clipspm.cache.seal import seal_path
from clipspm.cache.spec import LEDGER
from clipspm.cache.store import find_store
from clipspm.cache.verify import verify
from clipspm.cache.writer import parts_path
from clipspm.train_heads.doctor import examine
from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.training.train import train
from tests.support.caches import FORMATS, IDS, SPEC, TEXT, everything, fill, make, plan_of, suffix, values
from tests.support.power import Disk, PowerLoss
from tests.support.synthetic import fake_cache, real_cache, silent, tiny_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at open files through /proc")
MORE = [*IDS, "v11", "v12"]


def extend(path: Path, format: str) -> Path:
    """Two more videos, and the one that had failed."""
    writer = CacheWriter(
        path, SPEC, plan_of(MORE), TEXT, format=format, shard_size=4, retry_failed=True  # type: ignore[arg-type]
    )  # fmt: skip
    fill(writer, number={name: i for i, name in enumerate(MORE)})
    return writer.finish()


def assert_true(path: Path) -> None:
    """Every row that the cache has is what it should be; nothing of it is damaged."""
    for place in (path, parts_path(path)):
        if not place.exists():
            continue
        report = verify(place)
        assert not report.shards and not report.lines, report.findings
        if place == path and seal_path(path).exists():
            assert report.ok, report.findings
        store = find_store(place)
        videos = apply(read_ledger(store.blob(LEDGER))[0], store.planned())
        if any(video.status == "ok" for video in videos):
            cache = open_cache(place)
            for video, features in zip(cache.good, cache.features("final"), strict=True):
                np.testing.assert_array_equal(features, values(MORE.index(video.id), "final"))


def run(
    folder: Path, format: str, until: int, rng: random.Random | None, survived: Path, *, more: bool
) -> int:
    """Write (or extend) a cache until the power fails; check what is left and go on. Returns the flushes."""
    folder.mkdir()
    path = folder / suffix(format)
    if more:
        make(path, format)
    disk = Disk(folder, until)
    with pytest.MonkeyPatch.context() as patch:
        disk.follow(patch)
        with suppress(PowerLoss):
            (extend if more else make)(path, format)
    left = disk.survivors(survived, rng) / path.name
    assert_true(left)
    (extend if more else make)(left, format)
    assert verify(left).ok
    return disk.flushes


def check(tmp_path: Path, format: str, more: bool, at: range, seeds: int) -> None:
    whole = (tmp_path / "whole").joinpath(suffix(format))
    make(whole, format)
    if more:
        extend(whole, format)
    for until in at:
        for seed in range(-1, seeds):
            name = f"{until}-{seed}"
            rng = random.Random(f"{format} {name}") if seed >= 0 else None
            flushes = run(tmp_path / name, format, until, rng, tmp_path / f"left-{name}", more=more)
            left = tmp_path / f"left-{name}"
            for file in everything(whole):
                assert (left / file.relative_to(whole.parent)).read_bytes() == file.read_bytes(), file.name
            if flushes <= until:
                return  # the power came back before it failed


@pytest.mark.parametrize("more", [False, True], ids=["new", "extended"])
@pytest.mark.parametrize("format", FORMATS)
def test_at_some_moments(tmp_path: Path, format: str, more: bool) -> None:
    check(tmp_path, format, more, range(0, 10_000, 53), seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("more", [False, True], ids=["new", "extended"])
@pytest.mark.parametrize("format", FORMATS)
def test_at_every_moment(tmp_path: Path, format: str, more: bool) -> None:
    check(tmp_path, format, more, range(10_000), seeds=3)


@pytest.mark.parametrize("seed", [None, 0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_training_goes_on(tmp_path: Path, seed: int | None) -> None:
    """At some moments: what is left is a run that goes on to the same weights, or no run yet."""
    cache = real_cache(tmp_path / "c.zarr", fake_cache())
    config = tiny_config(episodes=32, val_every=16)
    whole = train(cache, config, tmp_path / "whole" / "run", log=silent).head.state_dict()
    evaluate(tmp_path / "whole" / "run", episodes=20, log=silent)
    for until in range(1 + (seed or 0), 10_000, 11):
        place = tmp_path / f"{until}"
        place.mkdir()
        disk = Disk(place, until)
        with pytest.MonkeyPatch.context() as patch:
            disk.follow(patch)
            with suppress(PowerLoss):
                train(cache, config, place / "run", log=silent)
                evaluate(place / "run", episodes=20, log=silent)
        left = (
            disk.survivors(tmp_path / f"left-{until}", None if seed is None else random.Random(seed)) / "run"
        )
        if (left / "config.json").exists() and (left / "trainer.safetensors").exists():
            assert not [file for file in examine(left).files if file.state == "damaged"]
        found = train(cache, config, left, resume=True, log=silent).head.state_dict()
        evaluate(left, episodes=20, log=silent)
        assert examine(left).ok
        assert all(torch.equal(found[name], value) for name, value in whole.items())
        if disk.flushes <= until:
            return


def test_the_model_forgets_what_was_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    disk = Disk(root).follow(monkeypatch)
    (root / "old").write_bytes(b"new")
    (root / "added").write_bytes(b"x")
    left = disk.survivors(tmp_path / "left")
    assert {path.name: path.read_bytes() for path in left.iterdir()} == {"old": b"old"}


def test_what_is_written_is_on_the_disk_when_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    disk = Disk(root).follow(monkeypatch)
    write_atomically(root / "a" / "b" / "whole", b"1")
    write_json(root / "json", {"a": 1})
    make_folder(root / "c" / "d")
    write_atomically(root / "log", b"")
    append(root / "log", b"line\n")
    write_atomically(root / "c" / "old name", b"2")
    move(root / "c" / "old name", root / "c" / "new name")
    (root / "e").mkdir()
    (root / "e" / "f").write_bytes(b"3")
    sync_all(root / "e")
    sync_all(root / "log")
    sync(root)
    left = disk.survivors(tmp_path / "left")
    found = {p.relative_to(left).as_posix(): p.read_bytes() for p in left.rglob("*") if p.is_file()}
    assert found == {
        "a/b/whole": b"1",
        "json": b'{\n  "a": 1\n}\n',
        "log": b"line\n",
        "c/new name": b"2",
        "e/f": b"3",
    }
    assert (left / "c" / "d").is_dir()
