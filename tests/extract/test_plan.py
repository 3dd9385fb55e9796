"""Mistakes are said before torch is loaded, and a dry run refuses what the run would refuse."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clipspm.engines import EngineConfig
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import ExtractConfig, extract
from clipspm.extract.demo import CLASSES, render_demo, stage
from clipspm.extract.demo.stage import extract_demo
from clipspm.extract.plan import prepare
from tests.support.cli import assert_one_clear_line, clipspm
from tests.support.interpreters import DRIVER, python
from tests.support.media import numbered_frames, write_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan") / "clips"
    for name in ("wave", "run"):
        for i in range(2):
            write_video(root / name / f"{i}.mp4", numbered_frames(12 + i))
    return root


@pytest.fixture
def config(clips: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExtractConfig:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    return ExtractConfig(
        dataset="folder", videos=clips, model=model, frames=2, precision="fp32", device="cpu", workers=1
    )


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--dataset", "hmdb15"), 2),
        (("--frames", "-4"), 2),
        (("--videos", "nowhere"), 1),
        (("--splits", "{wrong}"), 1),
        (("--splits", "nowhere.json"), 1),
        (("--prompts", "nothing"), 1),
        (("--layers", "x"), 2),
        (("--model", "ViT-B-61"), 2),
        (("--model", "local-dir:nowhere"), 1),
        (("--pretrained", "nowhere.pt"), 2),
        (("--format", "tar"), 2),
        (("--gpus", "1"), 2),
        (("--engine", "slurm", "--gpus", "0.5"), 2),
        (("--out", "/proc/x.zarr"), 1),
    ],
)
def test_mistakes_cost_no_time(clips: Path, tmp_path: Path, options: Sequence[str], code: int) -> None:
    (tmp_path / "wrong.json").write_text(json.dumps({"train": ["wave", "fly"]}))
    filled = [option.format(wrong=tmp_path / "wrong.json") for option in options]
    args = ["--dataset", "folder", "--videos", str(clips), *filled]
    printed = json.loads(python(DRIVER, "extract", *args).splitlines()[-1])
    assert (printed[0], printed[2]) == (code, [])
    assert printed[1] < 3.0  # 0.4 on a usual machine; PyTorch alone takes more


def test_dry_run_and_run_refuse_the_same(config: ExtractConfig, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def refused(message: str, **changed: object) -> None:
        for dry_run in (True, False):
            with pytest.raises(ClipspmError, match=message):
                extract(replace(config, dry_run=dry_run, **changed))  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("clipspm.engines.find_spec", lambda name: None)
        for name in ("slurm", "ray"):
            refused(
                rf"--engine {name} needs the extra: pip install 'clipspm\[{name}\]'",
                engine=EngineConfig(name=name),
            )  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr("clipspm.cache.disk.free_bytes", lambda path: 100)
        refused("free, the cache needs")
    refused(r"cannot write to /proc \(.*choose another --out", out=Path("/proc/c.zarr"))
    (tmp_path / "file").touch()
    refused(
        r"cannot write to .*/file \(Not a directory\): choose another --out", out=tmp_path / "file" / "c.zarr"
    )
    done = extract(config)
    refused("is not in the format --format hdf5", out=done.path, format="hdf5")
    shutil.copytree(config.videos, tmp_path / "less")  # type: ignore[arg-type]
    (tmp_path / "less" / "wave" / "1.mp4").unlink()
    refused("holds 1 videos that are not among", out=done.path, videos=tmp_path / "less")


def test_an_unwritable_home_is_named_with_its_variable(
    config: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "file"))
    with pytest.raises(ClipspmError) as caught:
        prepare(config)
    assert f"set CLIPSPM_HOME to another folder (now {tmp_path / 'file'})" in str(caught.value)


def test_listed_files_that_are_missing_are_counted(config: ExtractConfig, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        f"path,class,split\n{config.videos}/wave/0.mp4,wave,train\ngone.mp4,run,test\nalso.mp4,run,test\n"
    )
    listed = replace(config, dataset="manifest", videos=tmp_path / "m.csv", dry_run=True)
    assert f"2 of 3 listed files are missing, the first is {tmp_path}/also.mp4" in extract(listed).notes[0]
    (tmp_path / "m.csv").write_text("path,class,split\ngone.mp4,run,test\n")
    with pytest.raises(ClipspmError, match="1 of 1 listed files are missing.*relative paths start at"):
        extract(listed)


def test_a_dry_run_of_the_demo_renders_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    lines: list[str] = []
    result = extract(ExtractConfig(dataset="demo", dry_run=True, device="cpu"), on_start=lines.append)
    assert lines[0] == f"{result.videos} demo videos would be rendered to {tmp_path}/demo/videos"
    assert result.videos == 40 * len(CLASSES)
    assert not list(tmp_path.rglob("*.mp4"))


def test_wrong_splits_are_refused_before_a_demo_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    (tmp_path / "s.json").write_text('{"train": ["flying"]}')
    with pytest.raises(ClipspmError, match="'flying' has no videos"):
        prepare(ExtractConfig(dataset="demo", splits=tmp_path / "s.json"))
    assert not (tmp_path / "demo").exists()


def test_extract_ends_with_the_next_command(clips: Path, model: str, tmp_path: Path) -> None:
    args = ("extract", "--dataset", "folder", "--videos", clips, "--model", model, "--precision", "fp32")
    few = ("--frames", "2", "--workers", "1", "--device", "cpu")
    bare = clipspm(*args, *few, "--out", tmp_path / "a b.zarr", home=tmp_path)
    assert bare.returncode == 0, bare.stderr
    last = bare.stderr.splitlines()[-1]
    assert last == f"next: clipspm train-heads --cache '{tmp_path}/a b.zarr' --splits FILE"
    assert bare.stderr.count("no class split is known") == 1
    assert bare.stderr.index("no class split is known") < bare.stderr.index("videos extracted")
    (tmp_path / "s.json").write_text(json.dumps({"train": ["wave"], "test": ["run"]}))
    split = clipspm(*args, *few, "--splits", tmp_path / "s.json", "--out", tmp_path / "b.zarr", home=tmp_path)
    assert split.stderr.splitlines()[-1] == f"next: clipspm train-heads --cache {tmp_path}/b.zarr"


def test_a_demo_that_cannot_read_its_videos_says_why_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(root: Path, clips_per_class: int, world: str = "motion") -> None:
        render_demo(root, clips_per_class=1, classes=[*CLASSES][:2])

    monkeypatch.setattr(stage, "render_demo", render)
    monkeypatch.chdir(tmp_path)
    first = next(iter(CLASSES))
    broken = tmp_path / "demo" / "videos" / first / f"{first}_000.mp4"
    render(tmp_path / "demo" / "videos", 1)
    whole = broken.read_bytes()
    broken.write_bytes(b"nothing")
    result = clipspm("demo", "--out", tmp_path / "demo", home=tmp_path)
    assert_one_clear_line(result, "1 of 2 demo videos could not be read", broken.name, "unreadable")
    assert "videos that could not be read" in result.stderr  # the table
    broken.write_bytes(whole)
    cache, _ = extract_demo(tmp_path / "demo")
    assert len(cache.good) == 2


def test_wrong_values_are_refused_by_the_library_too() -> None:
    for name, wrong in (("format", "tar"), ("store_dtype", "int8"), ("precision", "fp8"), ("layers", "x")):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
            ExtractConfig(dataset="folder", **{name: wrong})  # type: ignore[arg-type]
