"""``clipspm report`` and ``diagnose`` on the command line, and what ``ablate`` writes at its end."""

import json
import os
from pathlib import Path

import pytest

from tests.look.conftest import Made
from tests.support.cli import assert_one_clear_line, clipspm

FEW = ("--test-episodes", 4, "--device", "cpu")


def test_report_writes_a_page_and_figures(made: Made, tmp_path: Path) -> None:
    out, figures = tmp_path / "page.html", tmp_path / "figures"
    said = clipspm("report", made.cells[2], "--out", out, "--figures", figures, *FEW, "--json", home=tmp_path)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == {"report": str(out), "about": "prototype", "figures": str(figures)}
    assert out.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert len(list(figures.glob("*.png"))) == len(list(figures.glob("*.svg"))) > 8


def test_diagnose_takes_an_ablation_and_names_its_rows(made: Made, tmp_path: Path) -> None:
    said = clipspm("diagnose", made.folder, *FEW, "--json", home=tmp_path)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["run"] == "full"
    assert {"full", "without padm", "prototype", "less anchor"} <= set(found["look_alikes"]["rows"])
    assert list(found["gap"]) == ["as cached", "after SPM", "after PADM"]
    said = clipspm("diagnose", made.cells[0], *FEW, home=tmp_path)
    assert said.stdout.count("interval over") >= 2
    assert "of the margin is left when nothing moves" in said.stdout


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("report", "{tmp}/none"), ("there is no run, or folder of runs",)),
        (("report", "{cell}", "--out", "{tmp}"), ("is a folder: name a file in it",)),
        (("report", "{cell}", "--out", "{cache}/x.html"), ("inside the cache",)),
        (("report", "{cell}", "--videos", "{tmp}/none"), ("--videos", "does not exist")),
        (("report", "{cell}", "--figures", "{cell}/config.json"), ("--figures", "name a folder")),
        (("report", "{cell}", "--test-episodes", "1"), ("--test-episodes is 1; it must be at least 2",)),
        (("diagnose", "{tmp}"), ("holds no run with results",)),
        (("diagnose", "{tmp}/none"), ("there is no run",)),
    ],
)
def test_mistakes_are_one_line(
    made: Made, tmp_path: Path, args: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    given = [a.format(tmp=tmp_path, cell=made.cells[2], cache=made.cache) for a in args]
    assert_one_clear_line(clipspm(*given, home=tmp_path), *parts, code=2)
    assert os.listdir(tmp_path) == []


def test_a_report_that_fails_is_a_note_at_the_end_of_other_work(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from clipspm.commands.look import report_beside

    report_beside(tmp_path, [tmp_path])
    assert "note: no report: no evaluated runs at" in capsys.readouterr().err
