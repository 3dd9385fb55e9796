"""Run directories that hold anything: every command says one line that names the file, within seconds."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer

from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.experiments.ablate import plan_ablation
from clipspm.train_heads.training.train import train
from tests.support.cli import clipspm
from tests.support.hostile_runs import ALL, ANYWHERE, CASES, OF_HEADS, READ_BY
from tests.support.synthetic import fake_cache, real_cache, silent, tiny_config

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes among files")

#: seconds that a command may take on a busy machine
PATIENCE = 20


@dataclass(frozen=True)
class Whole:
    """A finished and evaluated run, which is a cell of the ablation in ``out``."""

    home: Path
    out: Path
    run: Path
    settings: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    home = tmp_path_factory.mktemp("home")
    cache = real_cache(home / "c.zarr", fake_cache())
    plan = plan_ablation(
        cache, tiny_config(episodes=16), out_dir=home / "out", heads=("prototype",), episodes=20, log=silent
    )
    cell = plan.cells["full"][0]
    train(cache, cell.config, cell.path, log=silent)
    evaluate(cell.path, episodes=plan.episodes, log=silent)
    settings = home / "settings.json"
    shutil.copy(cell.path / "config.json", settings)
    return Whole(home, home / "out", cell.path, settings)


@pytest.fixture(autouse=True)
def built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is put together once, which takes longer than most commands here."""
    monkeypatch.setattr("clipspm.cli.app", _command())


@cache
def _command() -> object:
    from clipspm.cli import app

    return typer.main.get_command(app)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A command that hangs fails."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE * 6)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def commands(at: Whole) -> dict[str, tuple[object, ...]]:
    return {
        "eval": ("eval", at.run, "--test-episodes", 20, "--protocol", "inductive"),
        "results": ("results", at.run),
        "compare": ("compare", at.run, at.run),
        "resume": ("train-heads", "--resume", "--run-dir", at.run),
        "ablate": (
            "ablate", "--against", "prototype", "--cache", at.home / "c.zarr", "--config", at.settings,
            "--test-episodes", 20, "--out", at.out,
        ),
        "doctor": ("doctor", at.run, "--json"),
    }  # fmt: skip


@pytest.fixture
def target(whole: Whole, tmp_path: Path) -> Whole:
    out = tmp_path / "out"
    shutil.copytree(whole.out, out)
    return Whole(whole.home, out, out / whole.run.relative_to(whole.out), whole.settings)


@pytest.mark.parametrize("command", ALL.split())
def test_a_whole_run_is_taken_by_every_command(target: Whole, command: str) -> None:
    result = clipspm(*commands(target)[command], home=target.home)
    assert result.returncode == 0, result.stderr
    assert "32/32" not in result.stderr  # it is a cell of the ablation: nothing is trained


@pytest.mark.parametrize(("file", "what", "make"), CASES, ids=[f"{f}-{w}" for f, w, _ in CASES])
def test_a_hostile_run_is_one_line(
    target: Whole, file: str, what: str, make: Callable[[Path], object]
) -> None:
    run = target.run
    hashed = next(run.glob("eval-*.npz")).stem.removeprefix("eval-")
    name = {"predictions": f"eval-{hashed}.npz", "episodes": f"episodes-{hashed}.npz"}.get(file, file)
    if file in ("trainer.safetensors", "metrics.jsonl"):  # read where training goes on
        (run / "results.json").unlink()
    make(run / name)
    readers = "eval resume doctor" if what in OF_HEADS else READ_BY[file]
    if what not in ANYWHERE:  # compare and ablate read as results does
        readers = readers.replace("compare ", "").replace("ablate ", "")
    for command in readers.split():
        result = clipspm(*commands(target)[command], home=target.home)
        lines = result.stderr.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert result.returncode in (1, 2), (command, result)
        assert len(errors) == 1 and errors[0] == lines[-1], (command, result)
        assert name in errors[0], (command, errors[0])
        assert len(errors[0]) < 2000, command
        assert "Traceback" not in result.stderr
        assert "float32" not in errors[0] or what.startswith(("float", "bfloat", "another", "a moment"))
        if command == "doctor":
            found = json.loads(result.stdout)
            states = {entry["name"]: entry["state"] for entry in found["files"]}
            assert states[name] == "damaged"
            assert found["next"]
