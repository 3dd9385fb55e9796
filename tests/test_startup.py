"""What the command line loads before it knows that it has something to do, and how it can be called."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clipspm.cache.disk import replacing
from clipspm.progress import Reporter, shown, track
from tests.support.interpreters import DRIVER, python


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((), 0),
        (("-h",), 0),
        (("--help",), 0),
        (("train-heads", "-h"), 0),
        (("heads",), 0),
        (("train-heads", "--head", "list"), 0),
        (("train-heads", "--head", "protonet"), 2),
        (("train-heads", "--recipe", "offical"), 2),
        (("train-heads", "--set", "heads=four"), 2),
        (("train-heads", "--way", "1"), 2),
        (("ablate", "--drop", "pdam"), 2),
        (("ablate",), 2),
        (("results", "nowhere"), 2),
        (("compare", "a", "b"), 2),
        (("eval", "nowhere"), 2),
        (("report", "nowhere"), 2),
        (("report", "--out", "/nowhere/report.html"), 2),
        (("diagnose", "nowhere"), 2),
    ],
)
def test_help_and_mistakes_load_no_torch(tmp_path: Path, args: tuple[str, ...], code: int) -> None:
    printed = json.loads(python(DRIVER, *args).splitlines()[-1])
    assert printed[0] == code
    assert "torch" not in printed[2]
    assert printed[1] < 3.0


def test_a_bare_call_shows_help() -> None:
    for command in ([], ["cache"], ["episodes"]):
        shown = subprocess.run(
            [sys.executable, "-m", "clipspm", *command], capture_output=True, text=True, check=True
        )
        assert "Usage:" in shown.stdout
        assert "Commands:" in shown.stdout
        assert not shown.stderr


def test_the_shell_completes_commands() -> None:
    asked = {"COMP_WORDS": "clipspm ext", "COMP_CWORD": "1", "_CLIPSPM_COMPLETE": "complete_bash"}
    script = Path(sys.executable).with_name("clipspm")
    found = subprocess.run([script], capture_output=True, text=True, env={**os.environ, **asked})
    assert found.stdout.split() == ["extract"]


def test_threads_that_wait_spin_briefly_unless_the_user_says_otherwise() -> None:
    code = (
        "import os, sys; sys.argv = ['clipspm', '--version']; from clipspm.__main__ import main\n"
        "try: main()\nexcept SystemExit: print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for given, wanted in (
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | given)
        assert said.stdout.split()[-1] == wanted


def test_files_have_the_permissions_of_any_new_one(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "ours") as aside:
        aside.touch(mode=0o600)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")}
    assert len(modes) == 1


# progress


def test_what_is_followed_is_silent_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("clipspm.progress._PLAIN_EVERY", 0.0)
    assert list(track(range(5), "counting", 5, "numbers")) == [0, 1, 2, 3, 4]
    assert said == []
    with shown(Reporter(said.append)):
        assert sum(track(range(5), "counting", 5, "numbers")) == 10
        outer = len(said)
        for _ in track(range(2), "outer", 2, "things"):
            list(track(range(3), "inner", 3, "things"))  # one bar at a time
    assert outer == 4
    assert said[0].startswith("counting: 1/5 numbers, ")
    assert not any(line.startswith("inner") for line in said)


@pytest.mark.parametrize("width", [80, 120])
def test_bars_show_what_is_done_and_what_is_left(width: int) -> None:
    import io

    from rich.console import Console

    from clipspm.progress import bar

    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    progress = bar(console)
    row = progress.add_task("training clip-spm", total=100_000, unit="episodes", note="loss 12.345")
    progress.update(row, completed=45_678)
    console.print(progress)
    line = next(line for line in out.getvalue().splitlines() if "clip-spm" in line)
    assert "45678/100000 episodes" in line
    assert "loss 12.345" in line
    assert "━" * 8 in line
    assert "--:--" in line or ":" in line.rsplit("episodes", 1)[1]
    assert len(line.rstrip()) <= width
