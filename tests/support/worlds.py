"""The test classes of the demo's worlds, drawn and encoded in memory: a cache for heads that train nothing."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from clipspm.extract.demo import WORLDS, tiny_clip_source
from clipspm.extract.demo.render import draw_clip
from clipspm.extract.encoder import Encoder
from clipspm.extract.frames import segment_middles
from clipspm.extract.views import ClipSettings, still
from clipspm.look.subject import Subject
from clipspm.train_heads.config import resolve_config
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.heads.registry import build_head
from tests.support.synthetic import FakeCache, FakeSpec, FakeVideo


@cache
def _encoder() -> Encoder:
    return Encoder(tiny_clip_source(), None, device="cpu", precision="fp32")


@cache
def _features(filmed_as: str, folders: tuple[str, ...], clips: int) -> np.ndarray:
    pre, frames = _encoder().preprocessing, []
    settings = ClipSettings(8, 1, pre.resize, pre.crop, pre.interpolation, flip=False, min_frames=1)
    for folder in folders:
        for index in range(clips):
            whole = draw_clip(folder, seed=0, index=index, world=filmed_as)
            frames += [still(frame, settings) for frame in whole[segment_middles(len(whole), 8)]]
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    found = torch.cat([_encoder().encode_images(part).get("final") for part in pixels.split(256)])
    return found.view(len(folders) * clips, 1, 8, -1).numpy().astype(np.float16)


def drawn_world(name: str, clips: int = 8) -> FakeCache:
    """The test classes of the world's first split, ``clips`` of each."""
    world = WORLDS[name]
    folders = tuple(world.splits[0]["test"])
    names = tuple(world.names[folder] for folder in folders)
    features = _features(world.filmed_as, folders, clips)
    texts = _encoder().encode_text(names, ("{}",)).mean(1)
    videos = tuple(
        FakeVideo(f"{folder}/{i}", called, "test")
        for folder, called in zip(folders, names, strict=True)
        for i in range(clips)
    )
    spec = replace(FakeSpec(), dataset=world.dataset, frames=8, dims={"final": features.shape[-1]})
    return FakeCache(
        Path("/nowhere"), spec, videos, names, dict.fromkeys(names, "test"), {"final": features}, texts
    )


def untrained(cache: FakeCache, head: str = "evidence", **settings: object) -> Subject:
    """A head that trains nothing, on ``cache``."""
    data = Data(cache, "cpu")
    config = resolve_config(overrides={"head": head, "way": 5, "shots": 1, "device": "cpu", **settings})
    dim = cache.spec.dims["final"]
    built = build_head(head, dim=dim, frames=8, config=config.head_config)
    return Subject.of(built, config, data, head)
