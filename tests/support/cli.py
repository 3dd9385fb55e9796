"""The command line, called in this process."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipspm.cli import main


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def clipspm(*args: object, home: Path, folder: Path | None = None) -> Result:
    """One call of the command line, in this process, from ``folder`` (none: from ``home``)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("CLIPSPM_HOME", str(home))
        patch.setenv("COLUMNS", "200")
        patch.chdir(folder or home)
        patch.setattr(sys, "argv", ["clipspm", *map(str, args)])
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return Result(int(code or 0), out.getvalue(), err.getvalue())


def assert_one_clear_line(result: Result, *parts: str, code: int = 1) -> None:
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert "Traceback" not in result.stderr
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    for part in parts:
        assert part in lines[-1]
