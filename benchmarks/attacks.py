"""Attacks on the command line, as a stranger would run them: each says how many it tried and how many held.

Every command is a process of its own, so that another version can be attacked with the same attacks
(``code``: the folder that its package ``clipspm`` is in). What *held* means is said by each attack.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MB = 1e6
PATIENCE = 300.0  # seconds that a command may take
_SMALL = ("--set", "heads=1", "--set", "head_width=8", "--set", "ffn_width=8")


@dataclass
class Tally:
    """What came of an attack: ``wrong`` has a line for each try that did not hold."""

    name: str
    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def held(self) -> int:
        """How many tries held."""
        return self.tried - len(self.wrong)

    def note(self, what: str, trouble: str | None) -> None:
        """Count a try; ``trouble`` says what did not hold."""
        self.tried += 1
        if trouble:
            self.wrong.append(f"{what}: {trouble}")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def unsound(self, *codes: int) -> str | None:
        """What is wrong with how it ended: an exit code other than ``codes``, a traceback, several errors."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if "Traceback" in self.err:
            return f"traceback, {self.err.strip().splitlines()[-1][:120]}"
        if self.code not in codes:
            return f"exit code {self.code}: {(errors or self.err.splitlines() or [''])[-1][:160]}"
        if self.code in (1, 2) and len(errors) > 1:
            return f"{len(errors)} errors"
        return None


@dataclass(frozen=True)
class Place:
    """A folder with clips of four classes, a tiny encoder, a cache of them and a finished run."""

    root: Path
    code: Path | None = None

    @property
    def cache(self) -> Path:
        """The cache of the clips."""
        return self.root / "c.zarr"

    @property
    def run(self) -> Path:
        """The finished run."""
        return self.root / "run"

    def start(self, *args: object, cwd: Path | None = None) -> "subprocess.Popen[str]":
        """Begin a command."""
        root = self.code or Path(__file__).parents[2]
        environment = {**os.environ, "CLIPSPM_HOME": str(self.root / "home"), "COLUMNS": "200"}
        if self.code or (root / "clipspm").is_dir():
            environment["PYTHONPATH"] = str(root)
        return subprocess.Popen(
            [sys.executable, "-m", "clipspm.cli", *map(str, args)],
            cwd=cwd or self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )

    def call(self, *args: object, patience: float = PATIENCE) -> Ended:
        """Run a command; one that hangs ends with exit code 124."""
        return finish(self.start(*args), patience)

    def extraction(self, out: Path, *more: object) -> list[object]:
        """The command that makes a cache of the clips at ``out``."""
        settings = {
            "--dataset": "folder", "--videos": self.root / "clips", "--splits": self.root / "splits.json",
            "--model": f"local-dir:{self.root / 'tiny'}", "--layers": "1,final", "--frames": 4,
            "--precision": "fp32", "--device": "cpu", "--threads": 1, "--workers": 2, "--batch-size": 8,
            "--shard-size": 3, "--out": out,
        }  # fmt: skip
        return ["extract", *(word for pair in settings.items() for word in pair), *more]

    def ablation(self, out: Path) -> list[object]:
        """The command that trains two small heads and tabulates them at ``out``."""
        settings = {
            "--drop": "padm", "--cache": self.cache, "--out": out, "--way": 2, "--episodes": 48,
            "--test-episodes": 50, "--device": "cpu",
        }  # fmt: skip
        return ["ablate", *(word for pair in settings.items() for word in pair), *_SMALL]

    def training(self, run: Path, *more: object, episodes: int = 192) -> list[object]:
        """The command that trains a small head at ``run``."""
        settings = {
            "--cache": self.cache, "--run-dir": run, "--way": 2, "--episodes": episodes, "--device": "cpu",
        }  # fmt: skip
        return ["train-heads", *(word for pair in settings.items() for word in pair), *_SMALL, *more]


def finish(process: "subprocess.Popen[str]", patience: float = PATIENCE) -> Ended:
    """Wait for a command to end."""
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return Ended(124, out, err + "\nerror: it hung")
    return Ended(process.returncode, out, err)


def build(root: Path, code: Path | None = None) -> Place:
    """Make the clips, the encoder, the cache and the run."""
    from tests.support.media import numbered_frames, tiny_local_dir, write_video

    place = Place(root, code)
    for c, name in enumerate(("wave", "run", "jump", "clap")):
        for i in range(10):
            write_video(root / "clips" / name / f"clip {i}.mp4", numbered_frames(9 + c + i % 5, 40, 48))
    (root / "splits.json").write_text(json.dumps({"train": ["wave", "run"], "test": ["jump", "clap"]}))
    tiny_local_dir(root / "tiny")
    for command in (
        place.extraction(place.cache),
        place.training(place.run),
        ("eval", place.run, "--test-episodes", 100),
    ):
        ended = place.call(*command)
        if ended.code:
            raise RuntimeError(f"{command} ended with {ended.code}: {ended.err[-2000:]}")
    return place


@contextmanager
def tallied(name: str) -> Iterator[Tally]:
    """A tally that knows how long its block took."""
    tally, start = Tally(name), time.perf_counter()
    yield tally
    tally.seconds = time.perf_counter() - start


# ------------------------------------------------------------------------------------------------- kills


def killed_training(place: Place, tries: int, rng: random.Random) -> Tally:
    """Killed at any moment and resumed, a training ends with the weights of an undisturbed one."""
    with tallied("kills: train-heads") as tally:
        whole = place.root / "whole-run"
        length = _timed(place, place.training(whole))
        wanted = _tensors(whole)
        while tally.tried < tries:
            run = place.root / "killed-run"
            shutil.rmtree(run, ignore_errors=True)
            kills = 0
            for _ in range(3):
                kills += _kill(place, place.training(run, *_resume(run)), rng.uniform(0.3, 1.0) * length)
            ended = place.call(*place.training(run, *_resume(run)))
            trouble = ended.unsound(0)
            if not trouble and _tensors(run) != wanted:
                trouble = "other weights"
            for _ in range(max(kills, 1)):
                tally.note("training", trouble)
                trouble = None
    return tally


def _resume(run: Path) -> tuple[str, ...]:
    return ("--resume",) if (run / "config.json").exists() else ()


def _tensors(run: Path) -> dict[str, str]:
    from safetensors.numpy import load_file

    found = {}
    for file in sorted(run.glob("*.safetensors")):
        if file.name != "trainer.safetensors":
            arrays = load_file(file)
            found[file.name] = hashlib.sha256(
                b"".join(arrays[k].tobytes() for k in sorted(arrays))
            ).hexdigest()
    return found


def killed_ablation(place: Place, tries: int, rng: random.Random) -> Tally:
    """Killed at any moment and begun again, an ablation ends with the table of an undisturbed one."""

    with tallied("kills: ablate") as tally:
        length = _timed(place, place.ablation(place.root / "whole-ablation"))
        wanted = _scores(place.root / "whole-ablation")
        out = place.root / "killed-ablation"
        while tally.tried < tries:
            shutil.rmtree(out, ignore_errors=True)
            for _ in range(2):
                _kill(place, place.ablation(out), rng.uniform(0.3, 1.0) * length)
                tally.tried += 1
            ended = place.call(*place.ablation(out))
            trouble = ended.unsound(0)
            if not trouble and _scores(out) != wanted:
                trouble = "another table"
            if trouble:
                tally.wrong.append(f"ablation: {trouble}")
    return tally


def _scores(out: Path) -> Any:
    found = json.loads((out / "ablation.json").read_text())
    return json.dumps(found.get("rows", found), sort_keys=True).replace(str(out), "OUT")


def killed_results(place: Place, tries: int, rng: random.Random) -> Tally:
    """Killed at any moment, ``results --out`` leaves the table that was there, or the new one."""
    table = place.root / "table.csv"
    command = ("results", place.run, "--format", "csv", "--out", table)
    with tallied("kills: results") as tally:
        length = _timed(place, command)
        whole = table.read_text()
        for _ in range(tries):
            table.write_text("precious\n")
            _kill(place, command, rng.uniform(0.5, 1.05) * length)
            found = table.read_text() if table.exists() else "nothing"
            tally.note("table", None if found in (whole, "precious\n") else f"{found[:40]!r} is left")
    return tally


def killed_workers(place: Place, tries: int, rng: random.Random) -> Tally:
    """A decode worker that is killed costs a video, which ``--retry-failed`` does again: the same bytes."""
    with tallied("kills: a worker of extract") as tally:
        for number in range(tries):
            out = place.root / f"worker-{number}.zarr"
            process = place.start(*place.extraction(out))
            deadline, victims = time.monotonic() + 60, []
            while process.poll() is None and time.monotonic() < deadline and not victims:
                time.sleep(0.02)
                victims = [pid for pid in _descendants(process.pid) if "spawn_main" in _command_line(pid)]
            time.sleep(rng.uniform(0, 0.4))
            for pid in victims[-1:]:
                _signal(pid)
            ended = finish(process)
            trouble = ended.unsound(0, 3)
            if not trouble:
                trouble = place.call(*place.extraction(out, "--retry-failed")).unsound(0)
            if not trouble and _content(out) != _content(place.cache):
                trouble = "other bytes"
            tally.note("worker", trouble)
            shutil.rmtree(out, ignore_errors=True)
    return tally


def _timed(place: Place, command: Sequence[object]) -> float:
    start = time.perf_counter()
    ended = place.call(*command)
    if ended.code:
        raise RuntimeError(f"{command} ended with {ended.code}: {ended.err[-2000:]}")
    return time.perf_counter() - start


def _kill(place: Place, command: Sequence[object], after: float) -> int:
    """Kill a command and all its processes after so many seconds; whether it was still running."""
    process = place.start(*command)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return 1
    process.communicate()
    return 0


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _descendants(pid: int) -> list[int]:
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_descendants(child)]
    except OSError:
        pass
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------------------- flips


def flipped_caches(place: Place, tries: int, rng: random.Random) -> Tally:
    """``cache verify`` finds a flipped bit, and training on it is refused or ends with the same weights."""
    with tallied("bit flips: caches") as tally:
        wanted = _tensors(place.run)
        copy = place.root / "flipped.zarr"
        for _ in range(tries):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(place.cache, copy)
            where = _flip(copy, rng)
            if place.call("cache", "verify", copy).code != 1:
                tally.note(where, "not found by cache verify")
                continue
            run = place.root / "flipped-cache-run"
            shutil.rmtree(run, ignore_errors=True)
            command = [copy if word == place.cache else word for word in place.training(run)]
            ended = place.call(*command)
            same = ended.code == 0 and _tensors(run) == wanted
            tally.note(where, None if same else ended.unsound(1, 2))
    return tally


def flipped_runs(place: Place, tries: int, rng: random.Random) -> Tally:
    """``doctor`` finds a flipped bit, and ``eval`` is refused or gives the same scores."""
    with tallied("bit flips: runs") as tally:
        copy = place.root / "flipped-run"
        command = ("eval", copy, "--test-episodes", 100, "--json")
        wanted = None
        for number in range(tries + 1):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(place.run, copy, ignore=shutil.ignore_patterns(".*"))
            where = _flip(copy, rng) if number else ""
            doctor = place.call("doctor", copy) if number else None
            ended = place.call(*command)
            scores = _accuracies(ended.out) if ended.code == 0 else None
            if not number:
                wanted = scores
            elif doctor is not None and doctor.code != 1:
                silent = "" if scores in (None, wanted) else ", and eval gives other scores"
                tally.note(where, f"not found by doctor{silent}")
            else:
                tally.note(where, None if scores == wanted else ended.unsound(1, 2))
    return tally


def _accuracies(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return json.dumps(found.get("rows", found.get("scores", found)), sort_keys=True)


def _flip(folder: Path, rng: random.Random) -> str:
    """Flip a bit of some file, small ones as often as large ones."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    file = rng.choice(files)
    data = bytearray(file.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(data))
    return f"{file.relative_to(folder)}, bit {bit}"


# --------------------------------------------------------------------------------------------- full disk


def full_disk(place: Place, rooms: Sequence[int] = (0, 20_000, 120_000)) -> Tally:
    """On a full disk every command ends in one line, and goes through once there is room.

    ``rooms``: bytes that are free as it starts. Needs root, to mount a small disk.
    """
    disk = place.root / "disk"
    disk.mkdir(exist_ok=True)
    with tallied("full disk") as tally:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, check=False
        )
        if mounted.returncode:
            tally.note("a small disk", "this machine lets nobody mount a tmpfs")
            return tally
        try:
            for name, command in _writers(place, disk):
                for room in rooms:
                    _full(place, disk, name, command, room, tally)
        finally:
            subprocess.run(["umount", "-l", disk], check=False)
    return tally


def _writers(place: Place, disk: Path) -> list[tuple[str, Callable[[], list[object]]]]:
    """Commands that write to ``disk``, by name; each is made afresh, with what it needs there."""

    def on_a_copy_of_the_run() -> list[object]:
        shutil.copytree(place.run, disk / "run")
        return ["eval", disk / "run", "--test-episodes", 60]

    def drawn() -> list[object]:
        options = {"--cache": place.cache, "--split": "test", "--way": 2, "--episodes": 500}
        return [
            *("episodes", "make", "--out", disk / "episodes.npz"),
            *(word for pair in options.items() for word in pair),
        ]

    return [
        ("extract", lambda: place.extraction(disk / "c.zarr")),
        ("extract to HDF5", lambda: place.extraction(disk / "c.h5")),
        ("train-heads", lambda: place.training(disk / "trained", episodes=64)),
        ("eval", on_a_copy_of_the_run),
        ("ablate", lambda: place.ablation(disk / "ablation")),
        ("results", lambda: ["results", place.run, "--format", "csv", "--out", disk / "t.csv"]),
        ("cache convert", lambda: ["cache", "convert", place.cache, disk / "converted.h5"]),
        ("cache pack", lambda: ["cache", "pack", place.cache, disk / "packed.zarr"]),
        ("cache export to npz", lambda: ["cache", "export", place.cache, disk / "e.npz"]),
        ("cache export to safetensors", lambda: ["cache", "export", place.cache, disk / "e.safetensors"]),
        ("episodes make", drawn),
    ]


def _full(
    place: Place, disk: Path, name: str, command: Callable[[], list[object]], room: int, tally: Tally
) -> None:
    for old in disk.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    words = command()
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    with ballast.open("wb") as file:
        file.write(bytes(max(0, free - room)))
    ended = place.call(*words)
    trouble = ended.unsound(0, 1, 2)
    if not trouble and ended.code and str(disk) not in ended.err:
        trouble = f"names no file: {ended.err.strip().splitlines()[-1][:140]}"
    left = [p.name for p in disk.rglob("*") if p.name.endswith((".new", ".partial")) and p.is_file()]
    if not trouble and left and name != "extract to HDF5":
        trouble = f"left {left[0]}"
    ballast.unlink()
    if ended.code:
        again = place.call(*words, *(["--resume"] if _unfinished(words) else [])).unsound(0)
        trouble = trouble or (again and f"with room again: {again}")
    tally.note(f"{name}, {room} bytes free", trouble)


def _unfinished(words: Sequence[object]) -> bool:
    if words[0] != "train-heads":
        return False
    run = Path(str(words[words.index("--run-dir") + 1]))
    return (run / "trainer.safetensors").exists()


# ------------------------------------------------------------------------------------------- two at once


def two_at_once(place: Place, tries: int) -> Tally:
    """Of two that write to one place, the second is told who is there, or both get the same."""
    with tallied("two at once") as tally:
        for number in range(tries):
            out = place.root / f"twice-{number}.zarr"
            ends = _both(place, place.extraction(out), place.extraction(out))
            trouble = _one_refused(ends) or place.call(*place.extraction(out)).unsound(0)
            if not trouble and _content(out) != _content(place.cache):
                trouble = "other bytes"
            tally.note("extract", trouble)

            run = place.root / f"twice-run-{number}"
            ends = _both(place, place.training(run), place.training(run, "--seed", "1"))
            tally.note("train-heads", _one_refused(ends) or _mixed(run))

            words = place.ablation(place.root / f"twice-ablation-{number}")
            ends = _both(place, words, words)
            trouble = next((t for end in ends if (t := end.unsound(0, 1, 2))), None)
            tally.note("ablate", trouble or place.call(*words).unsound(0))

            words = ["eval", place.run, "--test-episodes", 50, "--seed"]
            ends = _both(place, [*words, 2 * number + 10], [*words, 2 * number + 11])
            trouble = next((t for end in ends if (t := end.unsound(0))), None)
            tally.note("eval", trouble or place.call("results", place.run).unsound(0))
    return tally


def _both(place: Place, one: Sequence[object], other: Sequence[object]) -> list[Ended]:
    processes = [place.start(*one), place.start(*other)]
    return [finish(process) for process in processes]


def _one_refused(ends: Sequence[Ended]) -> str | None:
    codes = sorted(end.code for end in ends)
    if codes[0] != 0 or codes[1] not in (1, 2):
        return f"exit codes {codes}"
    refused = next(end for end in ends if end.code)
    return refused.unsound(1, 2) or (None if "process" in refused.err else "is not told who is there")


def _mixed(run: Path) -> str | None:
    seed = json.loads((run / "config.json").read_text())["config"]["seed"]
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    episodes = [json.loads(line).get("episode") for line in lines]
    known = [episode for episode in episodes if episode is not None]
    return None if known == sorted(known) else f"the metrics of two trainings (seed {seed} is configured)"


# --------------------------------------------------------------------------------------- hostile content


def hostile_files(place: Place, seed: int) -> list[Tally]:
    """Hostile files cost themselves; clips beside them give the features that they give alone."""
    from clipspm.cache import open_cache
    from tests.support.hostile_videos import build as build_files

    folder = place.root / f"hostile-{seed}"
    files = build_files(folder / "videos", seed=seed)
    for file in files:
        if file.kind == "good":
            (target := folder / "alone" / file.name).parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / "videos" / file.name).read_bytes())
    start = time.perf_counter()
    peak: list[float] = []
    ended = _watched(place, _extraction_of(place, folder / "videos", folder / "c.zarr"), peak)
    seconds = time.perf_counter() - start
    place.call(*_extraction_of(place, folder / "alone", folder / "alone.zarr"))
    mixed = _features(folder / "c.zarr") if ended.code in (0, 3) else {}
    alone = _features(folder / "alone.zarr")
    records = {video.path: video for video in open_cache(folder / "c.zarr").videos} if mixed else {}
    tallies: dict[str, Tally] = {}
    for file in files:
        name = "hostile files: " + file.expected.replace("|", " or ")
        name = "good files beside hostile ones" if file.expected == "ok" else name
        record = records.get(file.name)
        found = "no row" if record is None else record.category or record.status
        trouble = None if found in file.expected.split("|") else found
        if not trouble and file.name in alone and _differ(alone[file.name], mixed[file.name]):
            trouble = "other features than alone"
        tallies.setdefault(name, Tally(name)).note(file.kind, trouble)
    whole = Tally("hostile files: the run ends with exit code 3", seconds=seconds)
    whole.note("extract", ended.unsound(3))
    memory = Tally(f"hostile files: all processes under {_MOST_MB} MB")
    highest = max(peak, default=0)
    memory.note("extract", None if highest < _MOST_MB else f"{highest:.0f} MB")
    return [*(tallies[name] for name in sorted(tallies)), whole, memory]


def _extraction_of(place: Place, videos: Path, out: Path) -> list[object]:
    command = place.extraction(out, "--decode-timeout", 30)
    command[command.index("--videos") + 1] = videos
    at = command.index("--splits")
    return [*command[:at], *command[at + 2 :]]


def _features(cache: Path) -> dict[str, Any]:
    from clipspm.cache import open_cache

    found = open_cache(cache)
    return dict(zip((video.path for video in found.good), found.features("final"), strict=True))


def _differ(one: Any, other: Any) -> bool:
    """By more than the last bit of fp16, which depends on what else is in a batch."""
    import numpy as np

    first, second = one.astype(np.float32), other.astype(np.float32)
    return bool((np.abs(first - second) > np.spacing(np.abs(one)).astype(np.float32)).any())


#: MB that all processes of an extraction may take together: an 8K clip is among the good ones
_MOST_MB = 6000


def _watched(place: Place, command: Sequence[object], peak: list[float]) -> Ended:
    """Run a command and note the resident memory (MB) of all its processes on the way."""
    process = place.start(*command)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak.append(sum(map(_resident, [process.pid, *_descendants(process.pid)])) / MB)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return finish(process)
    finally:
        done.set()
        watcher.join()


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def hostile_caches(place: Place) -> Tally:
    """A cache with right digests and absurd content is refused by ``cache verify`` and ``cache info``."""
    from tests.support.absurd_caches import ABSURD, absurd
    from tests.support.caches import make

    with tallied("caches that make no sense") as tally:
        for number, (blob, change) in enumerate(ABSURD):
            path = absurd(make(place.root / f"absurd-{number}.zarr"), blob, change)
            verified, opened = place.call("cache", "verify", path), place.call("cache", "info", path)
            tally.note(f"{blob}, case {number}", verified.unsound(1) or opened.unsound(1))
            shutil.rmtree(path)
    return tally


def hostile_runs(place: Place) -> Tally:
    """A run directory that holds anything is one line that names the file, within seconds."""
    from tests.support.hostile_runs import ANYWHERE, CASES, READ_BY

    copy = place.root / "hostile-run"
    commands = {
        "eval": ("eval", copy, "--test-episodes", 20),
        "results": ("results", copy),
        "resume": ("train-heads", "--resume", "--run-dir", copy),
    }
    with tallied("runs that make no sense") as tally:
        for file, what, make in CASES:
            if what not in ANYWHERE and file not in ("config.json", "results.json"):
                continue  # what is changed there is known to this version only
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(place.run, copy, ignore=shutil.ignore_patterns(".*"))
            hashed = next(copy.glob("eval-*.npz")).stem.removeprefix("eval-")
            name = {"predictions": f"eval-{hashed}.npz", "episodes": f"episodes-{hashed}.npz"}.get(file, file)
            if file in ("trainer.safetensors", "metrics.jsonl"):
                (copy / "results.json").unlink()
            if not (copy / name).exists():
                (copy / name).touch()
            try:
                make(copy / name)
            except Exception:  # a change to what a run of the other version does not hold
                continue
            reader = next(r for r in READ_BY[file].split() if r in commands)
            ended = place.call(*commands[reader], patience=60)
            tally.note(f"{name}, {what}, {reader}", ended.unsound(1, 2))
    return tally
