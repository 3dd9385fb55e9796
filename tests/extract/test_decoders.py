"""Decoders that can be chosen: exact where they read, PyAV where they are refused, and the record says which."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clipspm.cache import open_cache
from clipspm.cli import app
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import ExtractConfig, decode, extract, read_frames
from clipspm.extract.bench_decoders import bench_decoders, decoders_table
from clipspm.extract.decode import INDEXED, check_backend
from tests.support.media import cut_without_decoding, numbered_frames, rotate_mp4, sequential, write_video


def there(backend: str) -> bool:
    try:
        check_backend(backend)  # type: ignore[arg-type]
    except ClipspmError:
        return False
    return True


INDEXERS = [
    pytest.param(name, marks=pytest.mark.skipif(not there(name), reason=f"{name} does not load here"))
    for name in INDEXED
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips whose index can be trusted, and others."""
    root = tmp_path_factory.mktemp("videos")
    plain = write_video(root / "run" / "plain.mp4", numbered_frames(40), options={"g": "10", "bf": "0"})
    turned = write_video(root / "run" / "turned.mp4", numbered_frames(20))
    rotate_mp4(turned, 90)
    (root / "wave").mkdir()
    cut = cut_without_decoding(plain, root / "wave" / "cut.mp4", 5)
    mpeg4 = write_video(root / "wave" / "old.avi", numbered_frames(30), codec="mpeg4", options={"bf": "2"})
    return {"plain": plain, "turned": turned, "cut": cut, "old": mpeg4}


@pytest.mark.parametrize("backend", INDEXERS)
def test_frames_are_exact_and_the_guard_refuses_what_cannot_be(clips: dict[str, Path], backend: str) -> None:
    used = {}
    for name, path in clips.items():
        found, expected = read_frames(path, 8, backend=backend), read_frames(path, 8, backend="pyav")  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.frames, expected.frames, err_msg=name)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.pts_seconds, expected.pts_seconds, atol=1e-6)
        used[name] = found.backend
    assert used == {"plain": backend, "turned": "pyav", "cut": "pyav", "old": "pyav"}


@pytest.mark.parametrize("backend", INDEXERS)
def test_real_clips_are_exact(shared_dir: Path, backend: str) -> None:
    used = set()
    for clip in sorted((shared_dir / "videos" / "torchvision_assets").glob("*.mp4")):
        reference, _ = sequential(clip)
        found = read_frames(clip, 8, backend=backend)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.frames, reference[found.indices], err_msg=clip.name)
        used.add(found.backend)
    assert used == {backend}


@pytest.mark.parametrize("wrong", ["times", "count", "error"])
def test_a_decoder_that_errs_is_not_believed(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """One that gives other times than the packets have, other frames, or fails: PyAV reads in its place."""
    expected = read_frames(clips["plain"], 4, backend="pyav")

    def _by_decord(path: Path, packets: object, indices: np.ndarray) -> object:
        times = expected.pts_seconds + (0.1 if wrong == "times" else 0)
        if wrong == "error":
            raise RuntimeError("broken")
        return None if wrong == "count" else (np.zeros_like(expected.frames), times, 25.0)

    monkeypatch.setitem(decode._READERS, "decord", _by_decord)  # type: ignore[arg-type]
    found = read_frames(clips["plain"], 4, backend="decord")
    assert found.backend == "pyav"
    np.testing.assert_array_equal(found.frames, expected.frames)


def test_the_record_says_what_read_each_video(
    clips: dict[str, Path], tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    config = ExtractConfig(
        dataset="folder", videos=clips["plain"].parents[1], model=model, layers="final", frames=4,
        precision="fp32", device="cpu", workers=1, out=tmp_path / "a.zarr",
    )  # fmt: skip
    plain = open_cache(extract(config).path)
    for backend in (name for name in INDEXED if there(name)):
        chosen = replace(config, decoder=backend, out=tmp_path / f"{backend}.zarr")  # type: ignore[arg-type]
        cache = open_cache(extract(chosen).path)
        assert cache.spec.fingerprint == plain.spec.fingerprint  # the frames are the same
        np.testing.assert_array_equal(cache.features("final"), plain.features("final"))
        used = {Path(video.path).name: video.backend for video in cache.good}
        assert used == {"plain.mp4": backend, "turned.mp4": "pyav", "cut.mp4": "pyav", "old.avi": "pyav"}
    assert {video.backend for video in plain.good} == {"pyav"}


def test_decoders_that_are_not_there_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "find_spec", lambda name: None)
    with pytest.raises(
        ClipspmError, match=r"--decoder torchcodec is not installed: pip install 'clipspm\[torch"
    ):
        check_backend("torchcodec")
    monkeypatch.setattr(decode, "find_spec", lambda name: name)

    def fails(name: str) -> None:
        raise RuntimeError("Could not load libtorchcodec.\nLikely causes: ...")

    monkeypatch.setattr(decode, "import_module", fails)
    with pytest.raises(ClipspmError, match="it needs the shared libraries of FFmpeg") as caught:
        check_backend("torchcodec")
    assert "\n" not in str(caught.value)
    check_backend("auto")
    with pytest.raises(UsageError, match="needed one of auto, pyav, decord, torchcodec"):
        ExtractConfig(dataset="demo", decoder="ffmpeg")  # type: ignore[arg-type]


def test_decoders_are_measured_on_clips_of_ones_own(clips: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clips["plain"].read_bytes()[:900])
    results = {
        one.decoder: one for one in bench_decoders([clips["plain"].parents[1], broken], frames=4, repeats=1)
    }
    assert list(results) == ["pyav", "auto", "decord", "torchcodec"]
    assert results["pyav"].used == {"pyav": 4} and results["pyav"].failed == 1
    for name, one in results.items():
        if one.missing:
            assert not there(name)
            continue
        assert not one.wrong and one.failed == 1 and one.seconds and 0 < one.seconds < 5
        if name in INDEXED:
            assert one.used == {name: 1, "pyav": 3}
    assert len(decoders_table(list(results.values())).rows) == sum(
        not one.missing for one in results.values()
    )


def test_the_command_says_it_in_json(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(backend: str) -> None:
        if backend != "pyav":
            raise ClipspmError("not here")

    monkeypatch.setattr("clipspm.extract.bench_decoders.check_backend", none)
    done = CliRunner().invoke(
        app, ["bench-decoders", str(clips["plain"]), "--repeats", "1", "--frames", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    first, *others = json.loads(done.stdout)["decoders"]
    assert first["used"] == {"pyav": 1} and {one["missing"] for one in others} == {"not here"}
    with pytest.raises(UsageError, match="no such file or folder"):
        bench_decoders([Path("/nowhere")])
    with pytest.raises(UsageError, match="no video files there"):
        bench_decoders([clips["plain"].parents[1] / "run" / ".."][:0])
