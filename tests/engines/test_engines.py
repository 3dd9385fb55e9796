"""Engines: the same work gives the same result wherever it is done, and a worker that dies costs nothing."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from submitit.helpers import as_completed

from clipspm.engines import EngineConfig, make_engine
from clipspm.engines.base import Done, Task
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import ExtractConfig, extract
from clipspm.progress import Reporter, shown
from clipspm.train_heads import ablate
from tests.support.grumpy import Grumpy
from tests.support.media import numbered_frames, tiny_local_dir, write_video
from tests.support.synthetic import fake_cache, real_cache, silent, tiny_config

ENGINES = {
    "one process": {},
    "a process per device": {"device": "cpu,cpu"},
    "submitit": {"engine": EngineConfig(name="slurm", jobs=2, slurm={"cluster": "local"})},
    "ray": {"engine": EngineConfig(name="ray", jobs=2)},
}


def files_of(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for c, name in enumerate(("wave", "run", "jump")):
        for i in range(5):
            write_video(root / name / f"clip {i}.mp4", numbered_frames(9 + 3 * c + i, 40, 56 + 2 * i))
    (root / "run" / "broken.mp4").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> ExtractConfig:
    return ExtractConfig(
        dataset="folder",
        videos=videos,
        model=tiny_local_dir(tmp_path_factory.mktemp("model") / "tiny"),
        layers="1,final",
        frames=3,
        precision="fp32",
        device="cpu",
        threads=1,
        workers=1,
        batch_size=4,
        shard_size=3,
    )


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for several tests; the engine uses one that is there."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(config: ExtractConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    result = extract(replace(config, out=tmp_path_factory.mktemp("alone") / "c.zarr"))
    assert result.done == 15 and len(result.failures) == 1
    return files_of(result.path)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_gives_the_same_bytes(
    config: ExtractConfig, alone: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    options = dict(ENGINES[name])
    if "engine" in options:
        options["engine"] = replace(options["engine"], logs=tmp_path / "logs")
    result = extract(replace(config, out=tmp_path / "c.zarr", **options))
    assert (result.done, len(result.failures)) == (15, 1)
    assert files_of(result.path) == alone


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_hdf5_from_ray_is_the_same_file(config: ExtractConfig, tmp_path: Path) -> None:
    here = extract(replace(config, out=tmp_path / "a.h5", format="hdf5"))
    there = extract(
        replace(config, out=tmp_path / "b.h5", format="hdf5", engine=EngineConfig(name="ray", jobs=2))
    )
    assert here.path.read_bytes() == there.path.read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_ray_actor_killed_half_way_costs_nothing(
    config: ExtractConfig, alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "c.zarr"
    killed: list[int] = []

    def murder() -> None:
        while not killed:
            for name in os.listdir("/proc") if out.exists() else ():
                try:
                    command = Path("/proc", name, "cmdline").read_bytes()
                except OSError:
                    continue
                if b"ray::Actor.do" in command and (out / "staged").exists():
                    os.kill(int(name), signal.SIGKILL)
                    killed.append(int(name))
                    break
            time.sleep(0.01)

    thread = threading.Thread(target=murder, daemon=True)
    thread.start()
    result = extract(replace(config, out=out, engine=EngineConfig(name="ray", jobs=1)))
    killed.append(0)
    thread.join()
    assert killed[0], "no actor was caught at work"
    assert (result.done, len(result.failures)) == (15, 1)
    assert files_of(out) == alone


class Twice:
    """Each item is done once by a worker that dies before it can say so, and given to another."""

    def map(self, task: Task[Done], items: Sequence[Any]) -> Iterator[Done]:
        for item in items:
            with task.open(None) as work:
                next(work([item]))
            with task.open(None) as work:
                yield next(work([item]))


def test_a_worker_that_died_after_its_work_but_before_its_answer_costs_nothing(
    config: ExtractConfig, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipspm.extract.pipeline.make_engine", lambda config: Twice())
    out = tmp_path / "c.zarr"
    result = extract(replace(config, out=out, engine=EngineConfig(name="ray")))
    assert (result.done, len(result.failures)) == (15, 1)
    assert files_of(out) == alone
    with pytest.raises(ClipspmError, match="1 of 16 videos failed"):
        extract(replace(config, out=tmp_path / "d.zarr", max_failures="0", engine=EngineConfig(name="ray")))


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(devices=("cpu", "cpu")),
        pytest.param(EngineConfig(name="slurm", jobs=2, slurm={"cluster": "local"}), marks=pytest.mark.slow),
        pytest.param(EngineConfig(name="ray", jobs=2), marks=pytest.mark.slow),
    ],
    ids=lambda c: c.name,
)
def test_what_goes_wrong_in_a_worker_is_one_clear_line(
    config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # where workers find the task
    monkeypatch.setattr("clipspm.engines.ray.RETRIES", 1)
    engine = make_engine(replace(config, logs=tmp_path / "logs"))
    assert sorted(engine.map(Grumpy(), [3, 1, 2])) == [1, 4, 9]
    with pytest.raises(ClipspmError, match="thirteen"):
        list(engine.map(Grumpy(), [1, 13]))
    with pytest.raises(ClipspmError, match="died|failed"):
        list(engine.map(Grumpy(), [1, 99]))


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    "engine",
    [
        EngineConfig(devices=("cpu:0", "cpu:0")),
        pytest.param(EngineConfig(name="ray", jobs=2), marks=pytest.mark.slow),
    ],
    ids=lambda c: c.name,
)
def test_ablation_cells_trained_elsewhere_are_the_same(engine: EngineConfig, tmp_path: Path) -> None:
    cache = real_cache(tmp_path / "c.zarr", fake_cache())
    base = tiny_config(way=3, episodes=16)
    options = {"drops": ["padm"], "heads": ["clip-spm"], "episodes": 20}  # two rows are the same cell
    lines: list[str] = []
    here = ablate(cache, base, out_dir=tmp_path / "a", log=silent, **options)
    there = ablate(cache, base, out_dir=tmp_path / "b", log=lines.append, engine=engine, **options)
    assert there.trained == here.trained
    assert any(f"is done, {there.trained} of {there.trained}" in line for line in lines)
    for file in (tmp_path / "b" / "cells").glob("*/config.json") if engine.devices else ():
        assert json.loads(file.read_text())["config"]["device"] == "cpu:0"
    for name in ("full", "without padm"):
        for protocol in here.protocols:
            assert (here[name].accuracies[protocol] == there[name].accuracies[protocol]).all()


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("ray_here")
def test_actors_that_find_no_room_hold_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(EngineConfig(name="ray", jobs=4, cpus=2))  # two CPUs are there
    assert sorted(engine.map(Grumpy(), [1, 2, 3, 4])) == [1, 4, 9, 16]
    monkeypatch.setattr("clipspm.engines.ray._START", 0.5)
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        raise InterruptedError

    with shown(Reporter(log=stop)), pytest.raises(InterruptedError):
        list(make_engine(EngineConfig(name="ray", jobs=1, cpus=3)).map(Grumpy(), [1]))
    assert "no Ray actor has started" in lines[0] and "3 CPUs" in lines[0] and "has 2 CPUs" in lines[0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("told", ["option", "environment"])
def test_a_ray_that_does_not_answer_is_said_at_once(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    with socket.socket() as place:  # bound, but nobody listens
        place.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{place.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address if told == "environment" else "")
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        engine = make_engine(EngineConfig(name="ray", ray_address=address if told == "option" else None))
        with pytest.raises(ClipspmError, match=f"nothing answers at {address}"):
            list(engine.map(Grumpy(), [1]))


def test_what_sbatch_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, does in (("srun", "exit 0"), ("sbatch", "echo 'Invalid account' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    engine = make_engine(EngineConfig(name="slurm", logs=tmp_path / "logs"))
    with pytest.raises(ClipspmError, match="Slurm cannot be used: .*Invalid account"):
        list(engine.map(Grumpy(), [1]))


@pytest.mark.timeout(120)
def test_a_job_that_fails_says_why_and_keeps_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    logs = tmp_path / ("a folder with a name as long as they come " * 4) / "logs"
    engine = make_engine(EngineConfig(name="slurm", jobs=1, slurm={"cluster": "local"}, logs=logs))
    done: list[int] = []
    with pytest.raises(ClipspmError, match=r"1 of 1 jobs failed, the first is job \d+: thirteen \(log "):
        done.extend(engine.map(Grumpy(), [3, 2, 13, 1]))
    assert done == [9, 4]

    def damaging(jobs: Sequence[Any], poll_frequency: float) -> Iterator[Any]:
        for job in as_completed(jobs, poll_frequency=poll_frequency):
            job.paths.result_pickle.write_bytes(b"\x80\x05X")
            yield job

    monkeypatch.setattr("clipspm.engines.slurm.as_completed", damaging)
    with pytest.raises(ClipspmError, match="ended without a result .* truncated"):
        list(engine.map(Grumpy(), [3]))


def test_wrong_combinations() -> None:
    for wrong in (
        {"name": "pbs"},
        {"name": "ray", "jobs": 0},
        {"slurm": {"partition": "gpu"}},
        {"ray_address": "auto"},
        {"jobs": 3},
        {"name": "ray", "devices": ("cuda:0", "cuda:1")},
        {"gpus": 1},
        {"name": "slurm", "gpus": 0.5},
    ):
        with pytest.raises(UsageError):
            EngineConfig(**wrong)  # type: ignore[arg-type]
    assert EngineConfig(name="ray", gpus=0.5).gpus == 0.5
    with pytest.raises(UsageError, match="several devices"):
        ExtractConfig(dataset="folder", device="cpu,cpu", engine=EngineConfig(name="ray"))
