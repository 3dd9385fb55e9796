"""How often stage one decodes, encodes and writes, and what overlaps: counts, which repeat, not seconds."""

import os
import pickle
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipspm.cache.spec import CacheSpec
from clipspm.extract import ExtractConfig, decode_pool, extract, shards
from clipspm.extract.decode_pool import DecodePool
from clipspm.extract.encoder import Encoder, PendingFeatures
from clipspm.extract.views import ClipSettings
from tests.support.campaigns import tiny_config
from tests.support.media import numbered_frames, write_video

#: 9 videos of 4 frames in shards of 4, batches of 5 frames
BATCHES = [5, 5, 5, 1, 5, 5, 5, 1, 4]

#: what a decode worker does as it starts: leave a line for every file it opens and every video it reads
_COUNTING = """
import av, os
import clipspm.extract.views as views, clipspm.extract.decode as decode
def told(name, plain):
    def call(path, *args, **options):
        with open(os.environ["CLIPSPM_TEST_COUNTS"], "a") as file:
            file.write(f"{name} {os.path.basename(path)}\\n")
        return plain(path, *args, **options)
    return call
av.open = told("open", av.open)
decode._decode = told("decode", decode._decode)
views.read_frames = told("read", views.read_frames)
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExtractConfig:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    for i in range(9):
        write_video(tmp_path / "videos" / ("run", "wave")[i % 2] / f"{i}.mp4", numbered_frames(10 + i))
    return tiny_config(tmp_path, tmp_path / "videos", out=tmp_path / "c.zarr", batch_size=5, shard_size=4)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches, as they are encoded."""
    sizes: list[int] = []
    plain = Encoder.encode_images

    def encode(self: Encoder, pixels: Tensor) -> dict[str, Tensor]:
        sizes.append(len(pixels))
        return plain(self, pixels)

    monkeypatch.setattr(Encoder, "encode_images", encode)
    return sizes


def test_each_video_is_decoded_once_and_each_batch_encoded_once(
    config: ExtractConfig, encoded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "counts"
    (tmp_path / "sitecustomize.py").write_text(_COUNTING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CLIPSPM_TEST_COUNTS", str(log))
    result = extract(config)
    assert result.done == 9
    found = Counter(log.read_text().splitlines())
    names = [f"{i}.mp4" for i in range(9)]
    assert {line: n for line, n in found.items() if "open" not in line} == {
        f"{what} {name}": 1 for what in ("read", "decode") for name in names
    }
    assert all(found[f"open {name}"] == 2 for name in names)  # once for its packets, once for its frames
    assert encoded == [2, *BATCHES]  # the encoder looks at two images to know its widths
    assert extract(config).already == 9
    assert Counter(log.read_text().splitlines()) == found
    assert encoded == [2, *BATCHES, 2]


def test_a_shard_is_written_while_the_next_one_is_encoded(
    config: ExtractConfig, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    plain_stage, plain_add = shards.stage, shards.Batcher.add
    added = 0

    def stage(cache: Path, shard: int, *rest: Any) -> None:
        if shard == 0:
            assert going_on.wait(30), "the next shard waits for this one to be written"
        plain_stage(cache, shard, *rest)

    def add(self: Any, frames: Tensor) -> None:
        nonlocal added
        added += 1
        if added > 4:  # a video of the second shard
            going_on.set()
        plain_add(self, frames)

    monkeypatch.setattr(shards, "stage", stage)
    monkeypatch.setattr(shards.Batcher, "add", add)
    assert extract(config).done == 9


class _Slow:
    """An encoder that says when it is given a batch and when the features are fetched."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def pixel_buffer(self, count: int, *, on_device: bool) -> Tensor:
        return torch.empty((count, 2, 2, 3), dtype=torch.uint8)

    def put(self, frames: Tensor, room: Tensor) -> None:
        room.copy_(frames)

    def encode_images(self, pixels: Tensor) -> dict[str, Tensor]:
        self.events.append(f"encode {len(pixels)}")
        return {"final": pixels[:, :1, 0, 0].float()}


def test_features_are_fetched_when_the_next_batch_is_under_way(
    spec: CacheSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _Slow()

    class Watched(PendingFeatures):
        def wait(self) -> dict[str, Tensor]:
            found = super().wait()
            encoder.events.append(f"fetch {len(found['final'])}")
            return found

    monkeypatch.setattr(shards, "PendingFeatures", Watched)
    batcher = shards.Batcher(encoder, 5, spec)  # type: ignore[arg-type]
    for i in range(3):
        numbers = 10 * i + torch.arange(4, dtype=torch.uint8)
        batcher.add(numbers[:, None, None, None].expand(4, 2, 2, 3))
    batcher.finish()
    assert encoder.events == ["encode 5", "encode 5", "fetch 5", "encode 2", "fetch 5", "fetch 2"]
    found = batcher.features()["final"]
    assert found.shape == (3, 1, 4, 1)
    np.testing.assert_array_equal(found[:, 0, :, 0], [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]])


@pytest.fixture
def spec(config: ExtractConfig) -> CacheSpec:
    from clipspm.cache import open_cache

    made = open_cache(extract(replace(config, layers="final", limit=1)).path).spec
    return replace(made, dims={"final": 1})


def test_decoders_run_ahead_by_a_bounded_number(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(8))
    drawn = 0

    def jobs() -> Any:
        nonlocal drawn
        for i in range(20):
            drawn += 1
            yield path, str(i)

    with DecodePool(ClipSettings(2, 1, 37, 32, "bicubic", False, 1), workers=2, timeout=30.0) as pool:
        for number, _ in enumerate(pool.stream(jobs())):
            assert drawn == min(20, number + 6)  # three for each worker


def test_pixels_do_not_go_through_the_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(8, 240, 320))
    settings = ClipSettings(8, 1, 256, 224, "bicubic", False, 1)
    monkeypatch.setattr(decode_pool, "_slots", np.empty((2, settings.most_bytes), np.uint8))
    clip, shape = decode_pool._load(path, "a", settings, 1)
    assert shape == (1, 8, 224, 224, 3) and len(pickle.dumps(clip)) < 1000
    assert len(pickle.dumps(decode_pool._load(path, "a", settings, None))) > 10**6


def test_the_result_says_how_busy_each_stage_was(config: ExtractConfig) -> None:
    share = extract(config).share
    assert list(share) == ["decoding", "waiting for it", "encoding", "writing"]
    assert all(0 < value <= 1 for value in share.values())


def test_buffers_are_pinned_for_a_gpu_only(config: ExtractConfig) -> None:
    assert config.model is not None
    encoder = Encoder(config.model, None, precision="fp32", device="cpu")
    buffer = encoder.pixel_buffer(3)
    assert buffer.shape == (3, 32, 32, 3) and buffer.dtype == torch.uint8 and not buffer.is_pinned()
