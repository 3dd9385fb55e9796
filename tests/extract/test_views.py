"""Clips on their way from a decoder to the encoder: shared memory, and who resizes."""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from clipspm.cache import open_cache
from clipspm.errors import ClipspmError
from clipspm.extract import ExtractConfig, decode_pool, extract
from clipspm.extract.decode_pool import DecodePool
from clipspm.extract.encoder import Encoder
from clipspm.extract.views import Clip, ClipSettings, load_clip
from tests.support.campaigns import tiny_config
from tests.support.media import numbered_frames, tiny_local_dir, write_video
from tests.support.processes import memory_taken

SETTINGS = ClipSettings(2, 2, 37, 32, "bicubic", True, 1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("videos")
    return [
        write_video(root / ("run", "wave")[i % 2] / f"{i}.mp4", numbered_frames(9 + i, 40, 50 + 2 * i))
        for i in range(9)
    ]


@pytest.fixture
def config(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExtractConfig:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    return tiny_config(tmp_path, paths[0].parents[1], out=tmp_path / "c.zarr", batch_size=5, shard_size=4)


def check(pool: DecodePool, paths: list[Path]) -> None:
    for path, found in zip(paths, pool.stream([(p, p.name) for p in paths]), strict=True):
        assert isinstance(found, Clip)
        np.testing.assert_array_equal(found.pixels, load_clip(path, path.name, pool.settings).pixels)


@pytest.mark.parametrize("native", [0, 40 * 60, 10**6])
def test_clips_come_through_shared_memory_as_they_are(paths: list[Path], native: int) -> None:
    """Some of them resized in the decoders, some as decoded, each of another size."""
    with DecodePool(replace(SETTINGS, native=native), workers=1, timeout=30.0) as pool:
        assert len(pool._free) == 3
        check(pool, paths)
        found = next(pool.stream([(paths[0], "x")]))
        assert isinstance(found, Clip)
        assert pool._slots is not None
        assert np.shares_memory(found.pixels, pool._slots)


@pytest.mark.parametrize("missing", ["_memory_file", "_memory_path", "_map"])
def test_clips_are_the_same_where_no_memory_is_shared(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(decode_pool, missing, lambda *arguments: "" if missing == "_memory_path" else None)
    with DecodePool(SETTINGS, workers=1, timeout=30.0) as pool:
        assert pool._free == []
        check(pool, paths[:5])


def test_shared_memory_is_bounded(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "_MOST_SHARED", 2 * SETTINGS.most_bytes + 1)
    with DecodePool(SETTINGS, workers=1, timeout=30.0) as pool:
        assert len(pool._free) == 2  # of three
        check(pool, paths)
    monkeypatch.setattr(decode_pool, "_MOST_SHARED", 0)
    with DecodePool(SETTINGS, workers=1, timeout=30.0) as pool:
        check(pool, paths[:4])


def test_a_stream_that_was_left_keeps_its_places(paths: list[Path]) -> None:
    """Nobody knows whether they are still written to."""
    with DecodePool(SETTINGS, workers=1, timeout=30.0) as pool:
        left = pool.stream([(paths[0], "x")] * 9)
        first = next(left)
        assert isinstance(first, Clip)
        kept = first.pixels.copy()
        check(pool, paths[:4])
        np.testing.assert_array_equal(first.pixels, kept)
        assert pool._free == []
        left.close()
        assert len(pool._free) == 1
        check(pool, paths[:4])


def test_workers_that_die_while_they_wait_are_replaced(paths: list[Path]) -> None:
    found = []
    with DecodePool(SETTINGS, workers=2, timeout=30.0) as pool:
        for path, clip in zip(paths, pool.stream([(p, p.name) for p in paths]), strict=True):
            assert isinstance(clip, Clip)
            np.testing.assert_array_equal(clip.pixels, load_clip(path, path.name, SETTINGS).pixels)
            found.append(path)
            if len(found) == 1:
                time.sleep(1)  # everything that was asked for is there
                for process in multiprocessing.active_children():
                    if process.name == "pebble_pool_worker":
                        process.kill()
                time.sleep(1)
        check(pool, paths[:2])
    assert found == paths


def test_workers_that_cannot_start_are_one_clear_line(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import clipspm.extract.decode_pool as w, os\nw._map = lambda *a: os._exit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with (
        DecodePool(SETTINGS, workers=1, timeout=30.0) as pool,
        pytest.raises(ClipspmError, match="decode workers keep dying"),
    ):
        list(pool.stream([(p, p.name) for p in paths]))


@pytest.mark.parametrize("size", [(240, 320), (90, 61), (61, 90), (37, 37), (80, 40), (36, 38), (40, 90)])
def test_an_encoder_that_resizes_sees_what_pillow_gives(tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "video"
    folder.mkdir()
    for i in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + rng.integers(-60, 61, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i}.png")
    encoder = Encoder(tiny_local_dir(tmp_path / "tiny"), None, precision="fp32", device="cpu")
    plain = ClipSettings(4, 5, 37, 32, "bicubic", True, 1)
    by_pillow = load_clip(folder, "x", plain)
    by_torch = load_clip(folder, "x", replace(plain, native=size[0] * size[1]))
    assert by_torch.pixels.shape == (4, *size, 3) and by_torch.cut is not None
    assert any(mirrored for _, _, mirrored in by_torch.cut.boxes)
    exact, found = (encoder.views(clip).short() for clip in (by_pillow, by_torch))
    assert found.shape == exact.shape == (20, 32, 32, 3)
    assert (found - exact).abs().max() <= 2
    assert (found != exact).float().mean() < 0.01
    larger = load_clip(folder, "x", replace(plain, native=size[0] * size[1] - 1))
    assert larger.cut is None
    np.testing.assert_array_equal(larger.pixels, by_pillow.pixels)


def test_who_resizes_is_part_of_the_fingerprint(
    config: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[bool] = []
    plain = Encoder.views

    def views(self: Encoder, clip: Clip) -> Tensor:
        cut.append(clip.cut is None)
        return plain(self, clip)

    monkeypatch.setattr(Encoder, "views", views)
    by_pillow = extract(config)
    assert cut == [True] * 9
    config = replace(config, out=tmp_path / "d.zarr")
    by_torch = extract(replace(config, resize_on="encoder", limit=4))
    assert by_torch.fingerprint != by_pillow.fingerprint
    with pytest.raises(ClipspmError, match="resized_by: torch != pillow"):
        extract(replace(config, resize_on="decoders"))
    assert extract(config).already == 4  # auto keeps to what was begun
    assert cut == [True] * 9 + [False] * 9
    for layer in open_cache(by_torch.path).spec.layers:
        exact, found = (
            open_cache(result.path).features(layer)[:].astype(np.float32) for result in (by_pillow, by_torch)
        )
        assert np.linalg.norm(found - exact) < 1e-2 * np.linalg.norm(exact)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds processes to it")
def test_memory_does_not_grow_with_the_number_of_frames_and_is_limited(tmp_path: Path) -> None:
    frames = np.repeat(np.repeat(numbered_frames(12, 54, 96), 40, 1), 40, 2)
    path = write_video(tmp_path / "large.mp4", frames, options={"preset": "ultrafast", "refs": "1"})
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
        taken = apart.submit(memory_taken, path, replace(SETTINGS, frames=16)).result()
    assert taken < (12 / 2 + 8) * frames[0].nbytes  # twelve as they were decoded, and work on one in RGB
    small = write_video(tmp_path / "small.mp4", numbered_frames(9))
    large = np.repeat(np.repeat(numbered_frames(4, 54, 96), 80, 1), 80, 2)
    write_video(path, large, options={"preset": "ultrafast", "refs": "1"})
    with DecodePool(SETTINGS, workers=1, timeout=60.0, memory=0.25) as pool:
        kinds = [
            getattr(clip, "category", "ok") for clip in pool.stream([(small, "a"), (path, "b"), (small, "c")])
        ]
    assert kinds == ["ok", "out of memory", "ok"]


@pytest.mark.parametrize("native", [0, 4 * 64**2])
def test_frames_are_made_small_when_they_no_longer_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: int
) -> None:
    """The pixels are the same, whether frames wait as they were decoded or not."""
    settings = replace(SETTINGS, native=native, views=2)
    path = write_video(tmp_path / "a.mp4", numbered_frames(40))
    held = load_clip(path, "x", settings)
    monkeypatch.setattr("clipspm.extract.decode._MOST_HELD", 0)
    np.testing.assert_array_equal(load_clip(path, "x", settings).pixels, held.pixels)
