"""CONTRIBUTING.md: its map names what there is, and its examples run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipspm.cache import open_cache
from tests.support.media import numbered_frames, write_video

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
#: a bold word, then blocks: files with their name, and commands
EXAMPLES = {
    title: re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", part, re.M | re.S)
    for title, part in re.findall(r"^\*\*(\w+ \w+(?: \w+)?)\.\*\*(.*?)(?=^\*\*|^## |\Z)", TEXT, re.M | re.S)
}


def run(title: str, folder: Path) -> str:
    """Write the files of an example into ``folder``, and run its commands there; what they print."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, what in {"python": "", "clipspm": "-m clipspm "}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what}"$@"\n')
        (commands / name).chmod(0o755)
    paths = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "CLIPSPM_HOME": str(folder / "home")}
    for _, name, content in EXAMPLES[title]:
        if name:
            (folder / name).write_text(content)
    script = "set -e\n" + "".join(content for kind, _, content in EXAMPLES[title] if kind == "bash")
    done = subprocess.run(
        ["sh", "-c", script],
        env={**os.environ, **paths},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_every_example_is_short() -> None:
    assert [*EXAMPLES] == ["A head", "A data set", "An encoder"]
    for title, blocks in EXAMPLES.items():
        for kind, _, content in blocks:
            assert len(content.splitlines()) <= 20, (title, kind)


def test_the_head(tmp_path: Path) -> None:
    assert run("A head", tmp_path) == ""


def test_the_data_set_and_the_encoder(tmp_path: Path) -> None:
    for i, name in enumerate(re.findall(r"clips/\S+\.mp4", TEXT)):
        write_video(tmp_path / name, numbered_frames(12 + i))
    assert "every class" in run("A data set", tmp_path)
    run("An encoder", tmp_path)
    (path,) = (tmp_path / "home" / "caches").glob("*.zarr")
    cache = open_cache(path)
    widths = {f"{block}:{token}": 64 for block in (0, 1) for token in ("cls", "mean")}
    assert (len(cache.good), cache.spec.dims) == (4, {**widths, "final": 32})
    assert cache.class_splits == {"wave": "train", "jump": "test"}


@pytest.mark.parametrize(("file", "name"), re.findall(r"\? \| `(\S+\.py)` \| `(\w+)` \|", TEXT))
def test_the_map_points_at_what_is_there(file: str, name: str) -> None:
    assert re.search(rf"^ *(?:def|class) {name}\b", (ROOT / file).read_text("utf-8"), re.M)


def test_ten_questions_are_answered_and_paths_exist() -> None:
    assert len(re.findall(r"^\| (?:where|what) .*\? \| `", TEXT, re.M)) == 10
    for path in re.findall(r"`((?:extract|cache|train_heads|tests|examples)/[\w./*-]+)`", TEXT):
        assert [*ROOT.glob(path.rstrip("/"))], path
