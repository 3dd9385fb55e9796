"""Ctrl-C: one line, quickly, whatever goes on; what was done is kept."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clipspm.interrupts import undisturbed
from clipspm.train_heads.training import loop
from clipspm.train_heads.training.curves import Several
from clipspm.train_heads.training.train import train
from tests.support.media import numbered_frames, tiny_local_dir, write_video
from tests.support.synthetic import fake_cache, silent, tiny_config

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of a terminal")

#: seconds that a command may take to end; four times what is promised, for machines that others use too
PATIENCE = 8.0


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """Ctrl-C means what it means in a terminal; shells have jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Command:
    """A command line with a process group of its own, as a terminal gives it."""

    def __init__(self, *args: object, home: Path) -> None:
        command = [sys.executable, "-m", "clipspm", *map(str, args)]
        self.process = subprocess.Popen(
            command,
            cwd=home,
            env={**os.environ, "CLIPSPM_HOME": str(home)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.watchdog = threading.Timer(120, lambda: os.killpg(self.process.pid, signal.SIGKILL))
        self.watchdog.start()

    def until(self, part: str) -> None:
        """Read what it says until ``part`` is said."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if part in line:
                return
        raise AssertionError(f"{part!r} was never said: {self.lines}")

    def interrupt(self) -> tuple[int, list[str], float]:
        """Ctrl-C: the exit code, everything on standard error, and the seconds it took."""
        start = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        _, rest = self.process.communicate(timeout=60)
        self.watchdog.cancel()
        return self.process.returncode, [*self.lines, *rest.splitlines()], time.monotonic() - start


def assert_one_line(code: int, lines: list[str], seconds: float) -> str:
    assert code == 130, lines
    assert not any("Traceback" in line for line in lines), lines
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: interrupted")
    assert seconds < PATIENCE
    return errors[0]


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_while_modules_are_imported(tmp_path: Path, seconds: float) -> None:
    command = Command("demo", "--quick", home=tmp_path)
    time.sleep(seconds)
    assert_one_line(*command.interrupt())


@pytest.mark.parametrize(
    ("seconds", "code", "said"), [(0.6, 7, "whole\nafter it\n"), (60, 130, "error: interrupted\n")]
)
def test_an_import_is_never_cut_in_two(tmp_path: Path, seconds: float, code: int, said: str) -> None:
    (tmp_path / "slow.py").write_text(
        "import sys, time\n"
        "print('begun', flush=True)\n"
        "try:\n"
        f"    for _ in range({int(seconds * 100)}): time.sleep(0.01)\n"
        "    sys.stderr.write('whole\\n')\n"
        "except BaseException: pass\n"
    )
    (tmp_path / "main.py").write_text(
        "import sys, time\n"
        "from clipspm.interrupts import defer_interrupts_in_imports\n"
        "defer_interrupts_in_imports()\n"
        "try:\n"
        "    import slow\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    sys.stderr.write('after it\\n')\n"
        "    sys.exit(7)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "main.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    assert (process.returncode, rest) == (code, said)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def clips(home: Path) -> list[object]:
    """Options of an extraction that takes many shards."""
    for c, name in enumerate(("wave", "run", "jump", "clap")):
        for i in range(12):
            write_video(home / "clips" / name / f"{i}.mp4", numbered_frames(40 + c + i, 64, 48))
    (home / "splits.json").write_text(json.dumps({"train": ["wave", "run"], "test": ["jump", "clap"]}))
    model = tiny_local_dir(home / "tiny")
    return [
        "extract", "--dataset", "folder", "--videos", home / "clips", "--model", model, "--precision", "fp32",
        "--splits", home / "splits.json", "--shard-size", "1", "--workers", "1", "--out", home / "c.zarr",
    ]  # fmt: skip


@pytest.mark.slow
def test_extraction_and_training_go_on_where_they_stopped(home: Path, clips: list[object]) -> None:
    command = Command(*clips, home=home)
    ledger = home / "c.zarr" / "ledger.jsonl"
    while not (ledger.exists() and ledger.read_text().count("\n") > 3):
        assert command.process.poll() is None
        time.sleep(0.01)
    said = assert_one_line(*command.interrupt())
    assert "finished shards are kept; go on with: clipspm extract --dataset folder" in said
    again = subprocess.run(
        [sys.executable, "-m", "clipspm", *map(str, clips), "--json"],
        cwd=home, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(again.stdout)
    assert found["already"] >= 3
    assert found["done"] + found["already"] == 48

    (home / "often.yaml").write_text("val_every: 16")
    small = (
        "--set",
        "pool=false",
        "--set",
        "heads=1",
        "--set",
        "head_width=8",
        "--set",
        "ffn_width=8",
        "--way",
        "2",
    )
    options = ("--cache", home / "c.zarr", "--episodes", 100_000, "--config", home / "often.yaml", *small)
    command = Command("train-heads", *options, home=home)
    command.until("loading PyTorch")
    run = home / "runs"
    while not list(run.glob("*/trainer.safetensors")):
        assert command.process.poll() is None
        time.sleep(0.01)
    said = assert_one_line(*command.interrupt())
    assert " of 100000 episodes are saved; go on with: clipspm train-heads --resume --run-dir " in said
    folder = next(run.iterdir())
    command = Command("train-heads", *options, "--resume", home=home)
    command.until(f"resumed {folder} at")  # found by its settings
    assert_one_line(*command.interrupt())
    assert len(list(run.iterdir())) == 1


def test_the_command_that_is_named_goes_on(home: Path, clips: list[object]) -> None:
    """With the run's own cache and splits, whatever its directory is called; by another process not twice."""
    if not (home / "c.zarr").exists():
        subprocess.run([sys.executable, "-m", "clipspm", *map(str, clips)], cwd=home, check=True)
    (home / "often.yaml").write_text("val_every: 16")
    run = home / "my run"
    command = Command(
        "train-heads", "--cache", home / "c.zarr", "--way", "2", "--episodes", 100_000, "--run-dir", run,
        "--config", home / "often.yaml", "--set", "pool=false", "--set", "heads=1", "--set", "head_width=8", "--no-hold-out", home=home,
    )  # fmt: skip
    while not (run / "trainer.safetensors").exists():
        assert command.process.poll() is None
        time.sleep(0.01)
    again = [sys.executable, "-m", "clipspm", "train-heads", "--resume", "--run-dir", str(run)]
    second = subprocess.run(again, cwd=home, capture_output=True, text=True)
    assert second.returncode == 1
    assert (
        f"{run} is being trained by process {command.process.pid} on {socket.gethostname()}" in second.stderr
    )
    said = assert_one_line(*command.interrupt())
    named = shlex.split(said.partition("go on with: clipspm ")[2])
    command = Command(*named, "--device", "cpu", home=home)
    command.until(f"resumed {run} at")
    assert_one_line(*command.interrupt())


@pytest.mark.slow
def test_cells_on_several_devices_are_not_waited_for(home: Path, clips: list[object]) -> None:
    if not (home / "c.zarr").exists():
        subprocess.run([sys.executable, "-m", "clipspm", *map(str, clips)], cwd=home, check=True)
    command = Command(
        "ablate", "--cache", home / "c.zarr", "--way", "2", "--episodes", 1_000_000, "--against", "trx",
        "--device", "cpu,cpu", "--threads", "1", "--set", "pool=false", "--out", home / "cells", home=home,
    )  # fmt: skip
    while len(list((home / "cells" / "cells").glob("*/trainer.safetensors"))) < 2:
        assert command.process.poll() is None
        time.sleep(0.05)
    said = assert_one_line(*command.interrupt())
    assert "finished cells and the last checkpoint are kept; go on with: clipspm ablate" in said


# exactness, wherever it is interrupted

CACHE = fake_cache(views=2, frames=6)


@pytest.mark.parametrize("where", ["forward", "validation", "best", "log", "update"])
def test_interrupted_anywhere_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = tiny_config()
    whole = train(CACHE, config, tmp_path / "whole", log=silent)
    calls = 0

    def at(count: int, do: object, first: bool = True) -> object:
        """``do``, with Ctrl-C before (or after) its call number ``count``."""

        def instead(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            now = calls == count
            if now and first:
                signal.raise_signal(signal.SIGINT)
            result = do(*args, **kwargs)  # type: ignore[operator]
            if now and not first:
                signal.raise_signal(signal.SIGINT)
            return result

        return instead

    targets = {
        "forward": (loop, "make_batch", 4, True),
        "validation": (loop.Trainer, "validate", 2, True),
        "best": (loop.Run, "save_weights", 1, False),
        "log": (Several, "log", 2, False),
        "update": (loop.torch.amp.GradScaler, "update", 3, True),
    }
    owner, name, count, first = targets[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at(count, getattr(owner, name), first))
        with pytest.raises(KeyboardInterrupt) as stop:
            train(CACHE, config, tmp_path / "parts", log=silent)
    assert "--resume --run-dir" in stop.value.__notes__[0]
    parts = train(CACHE, None, tmp_path / "parts", resume=True, log=silent)
    for file in ("last.safetensors", "best.safetensors"):
        a, b = (load_file(tmp_path / run / file) for run in ("whole", "parts"))
        assert all((a[key] == b[key]).all() for key in a)
    assert (whole.val_accuracy, whole.best_step) == (parts.val_accuracy, parts.best_step)
    a, b = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    )
    assert a == b


def test_a_checkpoint_is_written_every_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    saved = []
    save = loop.Run.save_state
    monkeypatch.setattr(loop.Run, "save_state", lambda *args: (saved.append(args[3]["step"]), save(*args))[1])
    train(CACHE, tiny_config(), tmp_path / "run", log=silent)
    assert saved == [1, 2, 3, 4, 5, 6]


def test_runs_that_were_interrupted_before_this_version_go_on(tmp_path: Path) -> None:
    """Their checkpoints do not say when they were logged last."""
    facts = loop._Progress(step=4, logged=4).__dict__
    old = {k: v for k, v in facts.items() if k not in ("logged", "losses", "values")}
    assert loop.read_progress(old) == loop._Progress(step=4, logged=4)


def test_ctrl_c_waits_for_the_end_of_a_block() -> None:
    done = []

    def block() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_that_fails_loses_no_ctrl_c() -> None:
    def block() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        block()


def test_blocks_in_other_threads_leave_signals_alone() -> None:
    seen = []

    def work() -> None:
        with undisturbed():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
