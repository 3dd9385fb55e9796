"""``clipspm predict`` and ``timeline``: from clips to answers, and what is said of mistakes."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.recognise.conftest import picture
from tests.support.cli import assert_one_clear_line, clipspm
from tests.support.media import write_video


@pytest.fixture
def by(model: str, support: Path) -> tuple[object, ...]:
    return "--support", support, "--model", model, "--layers", "1,final", "--frames", 4


def test_clips_are_recognised(by: tuple[object, ...], queries: dict[str, Path], tmp_path: Path) -> None:
    result = clipspm("predict", *queries.values(), *by, "--json", home=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [one["label"] for one in found["predictions"]] == list(queries)
    for one in found["predictions"]:
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert next(iter(one["probabilities"])) == one["label"]
    assert "3 classes of 3 clips, nothing trained" in result.stderr
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 12


def test_a_folder_stands_for_its_clips(
    by: tuple[object, ...], queries: dict[str, Path], tmp_path: Path
) -> None:
    folder = queries["dawn"].parent
    result = clipspm("predict", folder, *by, "--csv", "--top", 2, home=tmp_path)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["clip"] for row in rows] == [str(path) for path in sorted(queries.values()) for _ in range(2)]


def test_evidence_is_shown(by: tuple[object, ...], queries: dict[str, Path], tmp_path: Path) -> None:
    result = clipspm("predict", queries["dawn"], *by, "--explain", home=tmp_path)
    assert "move/final" in result.stdout and "sum" in result.stdout
    again = clipspm("predict", queries["dawn"], *by, "--explain", "--json", home=tmp_path)
    assert "move/final" in json.loads(again.stdout)["predictions"][0]["evidence"]


def test_clips_that_cannot_be_read_are_skipped(
    by: tuple[object, ...], queries: dict[str, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad\x1b[31m.mp4"
    bad.write_text("no video")
    result = clipspm("predict", queries["dawn"], bad, *by, home=tmp_path)
    assert result.returncode == 3
    assert "skipped unreadable" in result.stderr and "\x1b" not in result.stderr + result.stdout
    alone = clipspm("predict", bad, *by, home=tmp_path)
    assert_one_clear_line(alone, "none of the clips could be read")


def test_what_is_kept_needs_no_supports(
    by: tuple[object, ...], queries: dict[str, Path], tmp_path: Path
) -> None:
    first = clipspm("predict", queries["dawn"], *by, "--json", "--save", tmp_path / "kept", home=tmp_path)
    again = clipspm("predict", queries["dawn"], "--load", tmp_path / "kept", "--json", home=tmp_path)
    assert json.loads(first.stdout) == json.loads(again.stdout)


def test_supports_may_be_listed(model: str, support: Path, queries: dict[str, Path], tmp_path: Path) -> None:
    lines = [f"{path},{path.parent.name}" for path in sorted(support.rglob("*.mp4"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,class", *lines]))
    args = "--support", tmp_path / "list.csv", "--model", model, "--layers", "1,final", "--frames", 4
    result = clipspm("predict", queries["dusk"], *args, "--json", home=tmp_path)
    assert json.loads(result.stdout)["predictions"][0]["label"] == "dusk", result.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "--support DIR"),
        (("--support", "nowhere"), 2, "--support nowhere: no such folder or CSV file"),
        (("--support", "one"), 2, "has one class, 'a'"),
        (("--support", "none"), 1, "no videos under"),
        (("--support", "two", "--model", "ViT-B-61"), 2, "open_clip has no architecture 'ViT-B-61'"),
        (("--support", "two", "--csv", "--json"), 2, "--csv and --json"),
        (("--support", "two", "--frames", "0"), 2, "--frames is 0; it must be at least 1"),
        (("--support", "two", "--frames", "-4"), 2, "--frames is -4; it must be at least 1"),
        (("--support", "two", "--workers", "0"), 2, "--workers is 0; it must be at least 1"),
        (("--support", "two", "--decode-timeout", "0"), 2, "--decode-timeout is 0.0; it must be more than 0"),
        (("--support", "two", "--head", "evidenc"), 2, "unknown head"),
        (("--support", "two", "--head", "trx"), 2, "must be trained first"),
        (("--load", "two"), 1, "clipspm.json"),
    ],
)
def test_mistakes_are_said_in_one_line(
    args: tuple[str, ...], code: int, message: str, queries: dict[str, Path], tmp_path: Path
) -> None:
    for folder in ("one/a", "two/a", "two/b", "none"):
        (tmp_path / folder).mkdir(parents=True)
        if folder != "none":
            (tmp_path / folder / "1.mp4").write_bytes(queries["dawn"].read_bytes())
    assert_one_clear_line(clipspm("predict", queries["dawn"], *args, home=tmp_path), message, code=code)


def test_a_long_video_is_cut_into_segments(by: tuple[object, ...], tmp_path: Path) -> None:
    frames = np.concatenate([picture("dusk", 7), picture("grow", 8)])
    video = write_video(tmp_path / "long.mp4", frames, fps=8)
    for ending, start in ((".vtt", "WEBVTT"), (".svg", "<svg"), (".csv", '"start, s"'), (".json", "{")):
        result = clipspm(
            "timeline", video, *by, "--window", "2s", "--out", tmp_path / f"t{ending}", home=tmp_path
        )
        assert result.returncode == 0, result.stderr
        assert (tmp_path / f"t{ending}").read_text().startswith(start)
    assert [s["label"] for s in json.loads((tmp_path / "t.json").read_text())["segments"]] == ["dusk", "grow"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--window", "two"), "--window 'two'"),
        (("--stride", "0s"), "--stride '0s'"),
        (("--stride", "3s", "--window", "2s"), "at most the window"),
        (("--out", "a.mp4"), "its ending must be one of"),
    ],
)
def test_mistakes_of_timeline(
    args: tuple[str, ...], message: str, by: tuple[object, ...], queries: dict[str, Path], tmp_path: Path
) -> None:
    assert_one_clear_line(clipspm("timeline", queries["dawn"], *by, *args, home=tmp_path), message, code=2)
