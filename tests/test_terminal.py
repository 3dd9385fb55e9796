"""Names that hold terminal escapes, line feeds or formulas reach nobody as such."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from clipspm.cache import CacheWriter, Plan, VideoRecord
from clipspm.extract.progress import failure_table
from clipspm.progress import Reporter
from clipspm.tables import Table
from clipspm.terminal import Terminal, escaped, one_line
from tests.support.caches import SPEC, TEXT, fill
from tests.support.cli import clipspm

HOSTILE = "\x1b]0;mine\x07\x1b[2J red\u202eder\nerror: fake\u2028\x9b\r=1+1\udcff"
WRITTEN = r"\x1b]0;mine\x07\x1b[2J red\u202eder\nerror: fake\u2028\x9b\r=1+1\udcff"


def test_what_is_not_to_be_seen_is_written_out() -> None:
    assert escaped(HOSTILE) == WRITTEN
    assert escaped(plain := "größer 日本 👩‍🔬 [bold]x[/] :smile:") == plain
    assert one_line("a\n  b\tc\x00") == r"a b c\x00"


@pytest.mark.parametrize(
    "code",
    [*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), 0x2066, 0x200B, 0x2060, 0xE0041],
)
def test_every_control_character_is(code: int) -> None:
    assert escaped(f"a{chr(code)}b").isprintable()


@pytest.mark.parametrize("format", ["terminal", "csv", "markdown", "latex"])
def test_in_tables(capsys: pytest.CaptureFixture[str], format: str) -> None:
    table = Table(("class " + HOSTILE, "n"), [(HOSTILE, "1"), (HOSTILE, HOSTILE)], HOSTILE, (HOSTILE,))
    if format == "terminal":
        Terminal().print(table)
        shown = capsys.readouterr().out
    else:
        shown = getattr(table, format)()
    assert all(line.isprintable() for line in shown.split("\n"))
    assert not any(line.startswith("error:") for line in shown.split("\n"))


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_formula_reaches_a_spreadsheet(cell: str) -> None:
    read = list(csv.reader(io.StringIO(Table(("name", cell), [(cell, "-3.5"), ("-", "+4")]).csv())))
    assert read[0][1] == read[1][0]
    assert read[1][0][0] in "'\\"
    assert read[1][1:] == ["-3.5"]
    assert read[2] == ["-", "+4"]


def test_in_news_and_bars(capfd: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.say(HOSTILE)
    reporter.console._force_terminal = True
    reporter._live = True
    reporter.say(HOSTILE)
    said = capfd.readouterr().err
    assert said.splitlines() == [one_line(HOSTILE)] * 2


def test_in_the_table_of_failures() -> None:
    result: Any = SimpleNamespace(failures=[(HOSTILE, "unreadable", HOSTILE)])
    console = Console(file=io.StringIO(), width=200)
    console.print(failure_table(result))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "mine" in said and all(line.isprintable() for line in said.split("\n"))


def test_in_what_commands_say(tmp_path: Path) -> None:
    names = (f"wave {HOSTILE}", f"run {HOSTILE}")
    videos = tuple(VideoRecord(f"{i} {HOSTILE}", HOSTILE, names[i % 2], "train") for i in range(6))
    plan = Plan(videos, names, dict.fromkeys(names, "train"))
    writer = CacheWriter(tmp_path / "c.zarr", SPEC, plan, TEXT)
    fill(writer, number={video.id: i for i, video in enumerate(videos)})
    cache = writer.finish()
    for args in (
        ("cache", "info", cache),
        ("cache", "verify", cache),
        ("cache", "info", HOSTILE),
        ("eval", HOSTILE),
        ("results", HOSTILE),
        ("extract", "--dataset", HOSTILE),
        (HOSTILE,),
        ("train-heads", "--cache", cache, "--way", "5"),
        (
            "episodes",
            "draw",
            "--cache",
            cache,
            "--split",
            "train",
            "--way",
            "2",
            "--out",
            tmp_path / "e.json",
        ),
    ):
        result = clipspm(*args, home=tmp_path)
        said = result.stdout + result.stderr
        assert said and all(line.isprintable() for line in said.split("\n")), args
    assert json.loads(clipspm("cache", "info", cache, "--json", home=tmp_path).stdout)["videos"]


def test_no_name_is_markup_in_markdown() -> None:
    name = "![beacon](http://evil/3.png) <script> [a]: b &amp; # *x* _y_"
    text = Table((name, "n"), [(name, "1")], name, (name,)).markdown()
    for mark in ("[", "]", "<", ">", "!", "&", "#", "*", "_"):
        assert all(text[i - 1] == "\\" for i, c in enumerate(text) if c == mark), mark
