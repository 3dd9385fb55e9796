"""The bank: only its split, the frames that were asked for, and the same numbers as the cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipspm.cache import open_cache
from clipspm.cache.transform import convert
from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.episodes import bank as bank_module
from clipspm.train_heads.episodes.bank import FeatureBank, middles, read_rows
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.training.train import train
from tests.support.synthetic import FakeCache, fake_cache, real_cache, silent, tiny_config

CACHE = fake_cache(views=3, frames=8, extra_layers={"3": 5}).reordered(1)


class Watched:
    """Stands for an array on disk; remembers the rows that were read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, set()

    def __getitem__(self, part: slice) -> np.ndarray:
        self.read |= set(range(len(self.array))[part])
        return self.array[part]


def rows_of(cache: FakeCache, split: str) -> list[int]:
    return [row for row, video in enumerate(cache.good) if video.split == split]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bank_holds_the_rows_of_its_split_and_no_others(split: str) -> None:
    bank = Data(CACHE, "cpu").bank(split, ("final", "3"))
    own = {CACHE.good[row].id: row for row in rows_of(CACHE, split)}
    assert set(bank.pool.ids) == set(own)
    assert bank.nbytes() == sum(CACHE.arrays[k][rows_of(CACHE, split)].nbytes for k in ("final", "3"))
    for i, video_id in enumerate(bank.pool.ids):
        for layer in ("final", "3"):
            got = bank.gather(np.array([[i]]), 8, layer=layer)[0, 0]
            assert np.array_equal(got.numpy(), CACHE.arrays[layer][own[video_id], 0].astype(np.float32))
    wanted = [CACHE.class_names.index(name) for name in bank.pool.names]
    assert np.array_equal(bank.text.numpy(), CACHE.texts[wanted])


def test_training_bank_reads_no_test_row() -> None:
    cache = fake_cache({"train": 3, "test": 3})
    watched = Watched(cache.arrays["final"])
    Data(replace(cache, arrays={"final": watched}), "cpu").bank("train")
    assert watched.read == set(rows_of(cache, "train"))


@given(st.lists(st.integers(0, 999), unique=True, max_size=60))
def test_rows_are_read_as_fancy_indexing_would(rows: list[int]) -> None:
    source = np.arange(2000).reshape(1000, 2)
    index = np.array(rows, dtype=np.int64)
    assert np.array_equal(read_rows(source, index), source[index])


def test_video_outside_the_bank_is_refused() -> None:
    bank = Data(CACHE, "cpu").bank("train")
    with pytest.raises(ClipspmError, match=r"train bank, which holds 0\.\.47"):
        bank.sample(np.array([[48]]), 4)


@pytest.mark.parametrize(("cached", "wanted"), [(8, 8), (16, 8), (8, 3), (5, 4), (1, 1)])
def test_evaluation_takes_the_middle_of_equal_segments(cached: int, wanted: int) -> None:
    expected = [int((i + 0.5) * cached / wanted) for i in range(wanted)]
    assert middles(cached, wanted).tolist() == expected


def test_evaluation_uses_the_first_view() -> None:
    bank = Data(CACHE, "cpu").bank("test")
    clips = bank.sample(np.arange(40).reshape(5, 8), 4)
    assert (clips.views == 0).all()
    assert (clips.frames == torch.tensor([1, 3, 5, 7])).all()


@given(st.integers(1, 8), st.integers(0, 2**31))
def test_training_takes_a_frame_of_each_segment_and_any_view(frames: int, seed: int) -> None:
    bank = Data(CACHE, "cpu").bank("train")
    clips = bank.sample(np.arange(48).reshape(6, 8), frames, torch.Generator().manual_seed(seed))
    edges = np.arange(frames + 1) * 8 // frames
    assert (clips.frames.numpy() >= edges[:-1]).all()
    assert (clips.frames.numpy() < edges[1:]).all()
    assert set(clips.views.unique().tolist()) == {0, 1, 2}


def test_training_reaches_every_frame() -> None:
    bank = Data(CACHE, "cpu").bank("train")
    seen = bank.sample(np.zeros((50, 10), dtype=np.int64), 4, torch.Generator().manual_seed(0)).frames
    assert seen.unique().tolist() == list(range(8))


def test_shuffled_time_permutes_each_clip() -> None:
    data = Data(CACHE, "cpu")
    plain, shuffled = data.bank("test"), data.bank("test", shuffle_time=True)
    videos = np.arange(40).reshape(5, 8)
    ordered, mixed = plain.sample(videos, 8).frames, shuffled.sample(videos, 8).frames
    assert torch.equal(mixed.sort(-1).values, ordered)
    assert not torch.equal(mixed, ordered)
    assert torch.equal(shuffled.sample(videos[2:4], 8).frames, mixed[2:4])  # whatever the batch
    jittered = shuffled.sample(videos, 8, torch.Generator().manual_seed(1)).frames
    assert torch.equal(jittered.sort(-1).values, ordered)


def test_shuffled_time_does_not_depend_on_the_order_on_disk() -> None:
    other = Data(CACHE.reordered(9), "cpu").bank("test", shuffle_time=True)
    mine = Data(CACHE, "cpu").bank("test", shuffle_time=True)
    assert torch.equal(mine.gather(np.arange(9)[None], 5), other.gather(np.arange(9)[None], 5))


def test_more_frames_than_cached_are_refused() -> None:
    with pytest.raises(UsageError, match="9 frames asked for, the cache holds 8"):
        Data(CACHE, "cpu").bank("test").sample(np.array([[0]]), 9)


def test_unknown_layer_is_refused() -> None:
    with pytest.raises(
        UsageError, match="no layer '7', it holds final, 3: `clipspm extract --layers 3,7,final` caches it"
    ):
        Data(CACHE, "cpu").bank("test", ("final", "7"))


def test_feature_that_is_not_finite_names_the_video() -> None:
    cache = fake_cache()
    cache.arrays["final"][3, 0, 0, 0] = np.nan
    with pytest.raises(ClipspmError, match=r"video train class 00/v003 is not finite"):
        Data(cache, "cpu").bank("train")


def bank_of(cache: Any, split: Any, *, mapped: bool) -> FeatureBank:
    sources = {"final": cache.mapped("final")}
    return FeatureBank.read(
        Pool.from_cache(cache, split), sources, cache.text(), where=cache.path, mapped=mapped
    )


@pytest.mark.parametrize("name", ["c.zarr", "c.h5"])
def test_features_left_in_the_files_are_the_same(tmp_path: Path, name: str) -> None:
    """Batches, losses and predictions, for views and jitter too."""
    fake = fake_cache({"train": 5, "val": 2, "test": 4}, per_class=7, views=1, frames=6)
    cache = real_cache(tmp_path / "first.zarr", fake)
    if name == "c.h5":
        cache = open_cache(convert(cache.path, tmp_path / name))
    held = bank_of(cache, "train", mapped=False)
    left = bank_of(cache, "train", mapped=True)
    assert left.nbytes() == 0 < held.nbytes()
    videos = np.random.default_rng(0).integers(0, len(held.pool.ids), (3, 8))
    for seed in (None, 1):
        generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
        got = [bank.gather(videos, 4, g) for bank, g in zip((left, held), generators, strict=True)]
        assert torch.equal(*got) and got[0].dtype == torch.float32
    shuffled = [bank_of(cache, "test", mapped=m).shuffled() for m in (True, False)]
    assert torch.equal(*(bank.gather(videos % 20, 4) for bank in shuffled))


def test_a_cache_larger_than_memory_is_left_in_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = real_cache(tmp_path / "c.zarr", fake_cache(per_class=40))
    results = []
    for free in (1e12, 40_000.0):
        monkeypatch.setattr(bank_module, "free_memory", lambda device, free=free: free)
        run = tmp_path / str(free)
        train(cache, tiny_config(episodes=16), run, log=silent)
        results.append(evaluate(run, cache, episodes=20, log=silent).as_dict()["protocols"])
        assert Data(cache, "cpu").bank("train").nbytes() == (0 if free == 40_000.0 else 6 * 40 * 4 * 16 * 2)
    assert results[0] == results[1]


@pytest.mark.parametrize(("dtype", "item"), [(np.float16, 2), (np.float32, 4)])
def test_features_stay_in_the_files_from_half_of_the_free_memory_on(
    monkeypatch: pytest.MonkeyPatch, dtype: type, item: int
) -> None:
    plain = fake_cache()
    cache = replace(plain, arrays={layer: array.astype(dtype) for layer, array in plain.arrays.items()})
    size = 6 * 8 * 4 * 16 * item
    for free, kept in ((2 * size - 1, 0), (2 * size, size)):
        monkeypatch.setattr(bank_module, "free_memory", lambda device, free=free: free)
        assert Data(cache, "cpu").bank("train").nbytes() == kept


def test_damage_is_noticed_when_a_mapped_shard_is_first_touched(tmp_path: Path) -> None:
    cache = real_cache(tmp_path / "c.zarr", fake_cache())
    chunk = next(p for p in (cache.path / "layers" / "final" / "c").rglob("*") if p.is_file())
    data = bytearray(chunk.read_bytes())
    data[99] ^= 1
    chunk.write_bytes(data)
    bank = bank_of(cache, "train", mapped=True)
    with pytest.raises(ClipspmError, match=r"shard 0 of layer final is damaged .*--repair"):
        bank.gather(np.array([[0]]), 4)
