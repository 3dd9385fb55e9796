"""Extract one shard of videos: from files to staged features.

A shard may be extracted twice, on any machine. Batches never cross shards and follow the shard's order, so
the features do not depend on workers, engines or earlier runs. Three stages overlap: workers decode ahead,
this process encodes, and a thread stages the previous shard.

Shapes: V views, T frames, H x W pixels of a crop, D a layer's width.
"""

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clipspm.cache.spec import CacheSpec, VideoRecord
from clipspm.cache.staging import is_staged, stage
from clipspm.engines.allocator import keep_pages
from clipspm.errors import ClipspmError
from clipspm.extract.decode import Backend
from clipspm.extract.decode_pool import DecodePool
from clipspm.extract.encoder import Encoder, PendingFeatures
from clipspm.extract.failures import DecodeError
from clipspm.extract.views import NATIVE, Clip, ClipSettings

_FP16_MAX = 65504.0


@dataclass(frozen=True)
class Shard:
    """The videos of one shard that are still to be extracted, by row of the cache."""

    number: int
    videos: Mapping[int, VideoRecord]


@dataclass(frozen=True)
class Spent:
    """Seconds by stage.

    ``decoding``: summed over the workers, without failed videos; ``waiting``: the encoder's for decoded
    videos; ``encoding``; ``writing``: of the thread that writes.
    """

    decoding: float = 0.0
    waiting: float = 0.0
    encoding: float = 0.0
    writing: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(**{name: value + getattr(other, name) for name, value in self.__dict__.items()})


@dataclass(frozen=True)
class ShardDone:
    """A staged shard, and the time spent on it (zero if it was staged before)."""

    number: int
    spent: Spent = Spent()


#: called after each video with whether it was read, and the time spent on it
Listen = Callable[[bool, Spent], None]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """The settings to extract shards, on this machine or another with the same file system.

    ``staging``: the staging folder; ``videos``: the folder that the records' paths are relative to.
    ``encoder`` and ``listen`` are not pickled: they stay in the process that made the task.
    """

    staging: Path
    videos: Path
    spec: CacheSpec
    model: str
    pretrained: str | None
    pixel_norm: Literal["model", "none"]
    flip: bool
    decoder: Backend
    batch_size: int
    workers: int
    timeout: float
    memory: float
    threads: int | None
    encoder: Encoder | None = field(default=None, repr=False)
    listen: Listen | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "encoder": None, "listen": None}

    @contextmanager
    def open(self, device: str | None = None) -> Iterator[Callable[[Iterable[Shard]], Iterator[ShardDone]]]:
        """Load the encoder, start the decode workers, and yield the function that extracts shards."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        keep_pages()
        encoder = self.encoder or self._load(device)
        settings = clip_settings(self.spec, flip=self.flip, decoder=self.decoder)
        pool = DecodePool(settings, workers=self.workers, timeout=self.timeout, memory=self.memory)
        with pool as decoders:
            yield lambda shards: self._run(encoder, decoders, list(shards))

    def _load(self, device: str | None) -> Encoder:
        spec = self.spec
        encoder = Encoder(
            self.model,
            self.pretrained,
            layers=spec.layers,
            device=device,
            precision=spec.precision,  # type: ignore[arg-type]
            resize=spec.resize,
            pixel_norm=self.pixel_norm,
        )
        here = (encoder.source.architecture_sha256, encoder.source.weights_sha256)
        if here != (spec.architecture_sha256, spec.weights_sha256):
            raise ClipspmError(
                f"the encoder on {socket.gethostname()} is not the one of this cache: {self.model}, "
                f"{self.pretrained} has different weights there"
            )
        return encoder

    def _run(self, encoder: Encoder, decoders: DecodePool, shards: list[Shard]) -> Iterator[ShardDone]:
        """Extract the shards in order; decoding runs ahead of encoding across shards, staging behind it."""
        todo = []
        for shard in shards:
            if is_staged(self.staging, shard.number):  # by a worker that died or was requeued afterwards
                yield ShardDone(shard.number)
            else:
                todo.append(shard)
        jobs = ((self.videos / video.path, video.id) for shard in todo for video in shard.videos.values())
        clips = decoders.stream(jobs)
        with ThreadPoolExecutor(1) as writer:
            before: Future[ShardDone] | None = None
            for shard in todo:
                encoded = self._encode(encoder, clips, shard)
                if before is not None:
                    yield before.result()
                before = writer.submit(self._stage, *encoded)
            if before is not None:
                yield before.result()

    def _encode(
        self, encoder: Encoder, clips: Iterator[Clip | DecodeError], shard: Shard
    ) -> tuple[Shard, dict[int, VideoRecord], dict[str, np.ndarray], Spent]:
        """Returns the shard, its videos' outcomes, the features of those that were read, and the time."""
        batcher = Batcher(encoder, self.batch_size, self.spec)
        outcomes: dict[int, VideoRecord] = {}
        total = Spent()
        for row, video in shard.videos.items():
            start = time.perf_counter()
            clip = next(clips)
            arrived = time.perf_counter()
            outcomes[row] = _outcome(video, clip)
            decoding = 0.0
            if isinstance(clip, Clip):
                batcher.add(encoder.views(clip))
                decoding = clip.seconds
            if len(outcomes) == len(shard.videos):
                batcher.finish()
            spent = Spent(decoding, arrived - start, time.perf_counter() - arrived)
            total += spent
            if self.listen is not None:
                self.listen(isinstance(clip, Clip), spent)
        return shard, outcomes, batcher.features(), total

    def _stage(
        self, shard: Shard, outcomes: dict[int, VideoRecord], features: dict[str, np.ndarray], spent: Spent
    ) -> ShardDone:
        start = time.perf_counter()
        stage(self.staging, shard.number, outcomes, features)
        return ShardDone(shard.number, spent + Spent(writing=time.perf_counter() - start))


def clip_settings(spec: CacheSpec, *, flip: bool, decoder: Backend = "auto") -> ClipSettings:
    """Return what decode workers take of each video for a cache of ``spec``."""
    return ClipSettings(
        spec.frames,
        spec.views,
        spec.resize,
        spec.crop,
        spec.interpolation,
        flip,
        spec.min_frames,
        native=NATIVE * spec.resize**2 if spec.resized_by == "torch" else 0,
        resize_mode=spec.resize_mode,
        crop_width=spec.crop_width,
        fill=spec.fill,
        decoder=decoder,
    )


class Batcher:
    """Collects the frames of videos and encodes them in batches that cross video boundaries.

    A batch's features are fetched only after the next batch has been started: on a GPU, one batch is filled
    while the other is computed. Hence two buffers.
    """

    def __init__(self, encoder: Encoder, size: int, spec: CacheSpec) -> None:
        self.encoder, self.spec = encoder, spec
        self.buffers = [encoder.pixel_buffer(size, on_device=spec.resized_by == "torch") for _ in range(2)]
        self.filled = 0
        self.underway: PendingFeatures | None = None
        self.encoded: dict[str, list[np.ndarray]] = {layer: [] for layer in spec.layers}

    def add(self, frames: torch.Tensor) -> None:
        """Copy ``frames``, uint8 [V * T, H, W, 3], into the batch; a full batch is encoded."""
        while len(frames):
            buffer = self.buffers[0]
            part = frames[: len(buffer) - self.filled]
            self.encoder.put(part, buffer[self.filled : self.filled + len(part)])
            self.filled += len(part)
            frames = frames[len(part) :]
            if self.filled == len(buffer):
                self._encode()

    def finish(self) -> None:
        """Encode the last, partial batch."""
        if self.filled:
            self._encode()
        self._fetch()

    def features(self) -> dict[str, np.ndarray]:
        """The features [videos, V, T, D] per layer, in the dtype of the store."""
        shape = (-1, self.spec.views, self.spec.frames)
        return {
            layer: np.concatenate(parts).reshape(*shape, self.spec.dims[layer])
            for layer, parts in self.encoded.items()
            if parts
        }

    def _encode(self) -> None:
        pixels = self.buffers[0][: self.filled].permute(0, 3, 1, 2)  # channels-last
        encoded = PendingFeatures(self.encoder.encode_images(pixels))
        self._fetch()
        self.underway = encoded
        self.buffers.reverse()
        self.filled = 0

    def _fetch(self) -> None:
        for layer, values in self.underway.wait().items() if self.underway else ():
            self.encoded[layer].append(_to_store(values.numpy(), layer, self.spec.store_dtype))
        self.underway = None


def _to_store(values: np.ndarray, layer: str, dtype: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ClipspmError(f"layer {layer} of the encoder gives NaN or infinite values: try --precision fp32")
    if dtype == "fp32":
        return values
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _FP16_MAX:
        raise ClipspmError(
            f"layer {layer} reaches {largest:.0f}, more than fp16 holds ({_FP16_MAX:.0f}): "
            "use --store-dtype fp32"
        )
    return values.astype(np.float16)


def _outcome(record: VideoRecord, clip: Clip | DecodeError) -> VideoRecord:
    if isinstance(clip, DecodeError):
        return clip.recorded(record)
    return replace(
        record,
        status="ok",
        category="",
        error="",
        frames=clip.total,
        fps=clip.fps,
        indices=clip.indices,
        pts_seconds=clip.pts_seconds,
        backend=clip.backend,
    )
