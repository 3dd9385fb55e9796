"""Two campaigns against an extraction: hostile files, and SIGKILL at random moments. Tests run them short."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clipspm.cache import open_cache
from clipspm.extract import ExtractConfig, extract
from tests.support.hostile_videos import File, build
from tests.support.media import numbered_frames, tiny_local_dir, write_video

#: what some file names make a decode worker do, by way of a module that it imports as it starts
_MISCHIEF = """
import clipspm.extract.views as views, os, time
plain = views.read_frames
def read(path, *args, **options):
    if "hangs" in str(path): time.sleep(600)
    if "dies" in str(path): os.kill(os.getpid(), 11)
    if "is killed" in str(path): os.kill(os.getpid(), 9)
    if "eats memory" in str(path): views.np.ones(2**33)  # 64 GiB
    return plain(path, *args, **options)
views.read_frames = read
"""
MISCHIEF = {
    "hangs": "timeout",
    "dies": "crashed",
    "eats memory": "out of memory",
    "is killed": "out of memory",
}


def tiny_config(folder: Path, videos: Path, **settings: object) -> ExtractConfig:
    """A small extraction with a tiny random encoder."""
    config = ExtractConfig(
        dataset="folder",
        videos=videos,
        model=tiny_local_dir(folder / "tiny"),
        layers="1,final",
        frames=4,
        precision="fp32",
        device="cpu",
        threads=1,
        workers=2,
        batch_size=8,
        shard_size=16,
    )
    return replace(config, **settings)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FaultReport:
    """``wrong``: what was not as it should be, one line each; ``hostile``: how many files were."""

    files: int
    hostile: int
    seconds: float
    wrong: tuple[str, ...]


def fault_campaign(folder: Path, *, good: int = 6, seed: int = 0, format: str = "zarr") -> FaultReport:
    """Extract good videos alone, then among hostile ones; compare features, categories and records."""
    videos, alone = folder / "videos", folder / "alone"
    files = build(videos, good=good, seed=seed)
    source = videos / next(f.name for f in files if f.kind == "good")
    for number, (name, category) in enumerate(MISCHIEF.items()):
        path = videos / "run" / f"{name} {number}.mp4"
        path.write_bytes(source.read_bytes())
        files.append(File(path.relative_to(videos).as_posix(), f"a decoder that {name}", category))
    for file in files:
        if file.expected == "ok":
            target = alone / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (videos / file.name).is_dir():
                shutil.copytree(videos / file.name, target, symlinks=True)
            else:
                target.write_bytes((videos / file.name).read_bytes())
    (folder / "mischief").mkdir()
    (folder / "mischief" / "sitecustomize.py").write_text(_MISCHIEF)
    before = os.environ.get("PYTHONPATH")
    started = time.perf_counter()
    clean = open_cache(extract(tiny_config(folder, alone, out=folder / "alone.cache")).path)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder / "mischief"), before)))
    try:
        config = tiny_config(folder, videos, out=folder / "mixed.cache", format=format, decode_timeout=8.0)
        result = extract(config)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    mixed = open_cache(result.path)
    wrong = []
    by_path = {video.path: video for video in mixed.videos}
    for file in files:
        record = by_path.get(file.name)
        found = "no row" if record is None else record.category or record.status
        if found not in file.expected.split("|"):
            wrong.append(f"{file.kind} ({file.name}): {found} instead of {file.expected}")
        elif record is not None and record.status == "failed" and not record.error:
            wrong.append(f"{file.kind} ({file.name}): no message")
    rows = {video.path: row for row, video in enumerate(mixed.good)}
    for layer in mixed.spec.layers:
        for row, video in enumerate(clean.good):
            expected = clean.features(layer)[row].astype(np.float32)
            if video.path not in rows:
                continue
            difference = np.abs(mixed.features(layer)[rows[video.path]].astype(np.float32) - expected)
            if (difference > np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32)).any():
                wrong.append(f"{video.path}: layer {layer} differs by {difference.max():.2g}")
    odd = sum(file.kind != "good" for file in files)
    return FaultReport(len(files), odd, time.perf_counter() - started, tuple(wrong))


@dataclass(frozen=True)
class KillReport:
    """``kills``: how many runs were killed before they ended; ``wrong``: files that differ in the end."""

    kills: int
    seconds: float
    wrong: tuple[str, ...]


def kill_campaign(
    folder: Path, *, kills: int = 20, videos: int = 48, seed: int = 0, format: str = "zarr"
) -> KillReport:
    """Kill the whole process tree of an extraction at random moments, resume it each time, compare bytes."""
    source = folder / "videos"
    for i in range(videos):
        frames = numbered_frames(8 + i % 5, 40, 48 + 2 * (i % 4))
        write_video(source / ("wave", "run", "jump")[i % 3] / f"clip {i}.mp4", frames)
    config = tiny_config(folder, source)
    command = [sys.executable, "-m", "clipspm.cli", "extract", "--dataset", "folder", "--videos", source]
    options = {"--model": config.model, "--layers": config.layers, "--frames": 4, "--precision": "fp32"}
    options |= {"--device": "cpu", "--threads": 1, "--workers": 2, "--batch-size": 8, "--shard-size": 3}
    command += [word for pair in {**options, "--format": format}.items() for word in pair]
    name = "c.h5" if format == "hdf5" else "c.zarr"
    rng, started = random.Random(seed), time.perf_counter()
    whole, killed = folder / "whole" / name, folder / "killed" / name
    begun = time.perf_counter()
    _run([*command, "--out", whole], folder)
    length = time.perf_counter() - begun
    count = 0
    while count < kills:
        moment = rng.uniform(0.15 * length, 1.05 * length)
        process = _start([*command, "--out", killed], folder)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            count += 1
            continue
        if process.returncode:
            raise RuntimeError(f"an extraction ended with {process.returncode}: {process.stderr}")
        for place in killed.parent.iterdir():  # it got through: begin anew, there are kills left
            _run(["rm", "-rf", place], folder)
    _run([*command, "--out", killed], folder)
    wrong = _different(whole.parent, killed.parent)
    return KillReport(count, time.perf_counter() - started, tuple(wrong))


def _start(command: Sequence[object], folder: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "CLIPSPM_HOME": str(folder / "home")}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _run(command: Sequence[object], folder: Path) -> None:
    process = _start(command, folder)
    if process.wait():
        raise RuntimeError(
            f"{command} ended with {process.returncode}: {(folder / 'log.txt').read_text()[-2000:]}"
        )


def _different(first: Path, second: Path) -> list[str]:
    """Files that are not the same in both folders; locks, which are empty and hidden, aside."""

    def content(folder: Path) -> dict[str, bytes]:
        files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}

    one, two = content(first), content(second)
    return [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
