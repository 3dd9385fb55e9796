"""The features of one split, on the device, ready to be gathered into episodes.

A bank holds the rows of its split and no others, so code that receives the training bank cannot reach a test
video. Shapes: E episodes, S or Q videos of an episode, V cached views, T' cached frames, T frames sampled
from them, D feature width, C classes of the split.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipspm.errors import ClipspmError
from clipspm.progress import track
from clipspm.train_heads.episodes.draw import check_frames
from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.episodes.random import derive_seed

_BLOCK = 256  # rows read from the cache at a time


def middles(cached: int, wanted: int) -> npt.NDArray[np.int64]:
    """Return the middle of each of ``wanted`` equal segments of ``cached`` frames, [T]."""
    return (2 * np.arange(wanted, dtype=np.int64) + 1) * cached // (2 * wanted)


@dataclass(frozen=True)
class Clips:
    """Which view and frames of which videos: ``videos`` [E, S], ``views`` [E, S], ``frames`` [E, S, T]."""

    videos: Tensor
    views: Tensor
    frames: Tensor


def free_memory(device: torch.device) -> float:
    """Return the free bytes on ``device``; infinity if the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return 1024.0 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration, ValueError):
        return float("inf")


class MappedRows:
    """Features of a pool's videos that stay in the cache's files; ``shape`` [N, V, T', D]."""

    def __init__(self, source: Any, pool: Pool) -> None:
        self._source, self._pool = source, pool
        self.shape: tuple[int, ...] = (len(pool.ids), *source.shape[1:])

    def part(self, pool: Pool) -> "MappedRows":
        """Return the rows of ``pool``, which has some of these videos."""
        return MappedRows(self._source, pool)

    def take(self, clips: Clips) -> Tensor:
        """Read the features of ``clips``, [E, S, T, D], on the CPU, each video once."""
        videos, place = torch.unique(clips.videos.cpu(), return_inverse=True)
        rows = self._pool.rows[videos.numpy()]
        block = self._source.take(rows)
        if not np.isfinite(block).all():
            which = int(np.argmin(np.isfinite(block).all((1, 2, 3))))
            raise ClipspmError(f"features of video {self._pool.ids[int(videos[which])]} are not finite")
        index = (place[..., None], clips.views.cpu()[..., None], clips.frames.cpu())
        return torch.from_numpy(block)[index]


class FeatureBank:
    """Features, text and labels of one split.

    ``pool``: the order of videos (axis N below) and classes; ``text`` [C, D]; ``labels`` [N] rows of text.
    """

    def __init__(
        self,
        pool: Pool,
        features: "Mapping[str, Tensor | MappedRows]",
        text: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        shuffle_time: bool = False,
    ) -> None:
        """``features``: [N, V, T', D] per layer, rows in the order of ``pool``; ``text`` [C, D].

        ``shuffle_time`` randomises the order of each clip's frames, as a control.
        """
        self.pool = pool
        self.dtype = dtype
        self.shuffle_time = shuffle_time
        self._features = features
        self.text = text
        self.labels = torch.as_tensor(pool.labels, device=text.device)
        self._shuffle_keys: Tensor | None = None

    @classmethod
    def read(
        cls,
        pool: Pool,
        sources: Mapping[str, Any],
        text: npt.NDArray[np.float32],
        *,
        where: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        mapped: bool | None = None,
    ) -> "FeatureBank":
        """Read the videos of ``pool``. Features stay in the cache's precision; ``gather`` returns ``dtype``.

        ``sources``: features [.., V, T', D] of the whole cache by layer; ``text`` [.., D] of all its classes;
        ``where``: what messages call it. ``mapped``: leave features in the cache's files and read what each
        batch needs; None: do so if they take more than half of the free memory.
        """
        if mapped is None:
            row = sum(source.dtype.itemsize * math.prod(source.shape[1:]) for source in sources.values())
            mapped = 2 * row * len(pool.ids) > free_memory(torch.device(device))
        features: dict[str, Tensor | MappedRows] = {}
        for layer, source in sources.items():
            if mapped:
                features[layer] = MappedRows(source, pool)
                continue
            stored = torch.from_numpy(read_rows(source, pool.rows))
            finite = torch.cat([part.flatten(1).isfinite().all(1) for part in stored.split(_BLOCK)])
            if not bool(finite.all()):
                video = pool.ids[int((~finite).nonzero()[0])]
                raise ClipspmError(f"{where}: layer {layer} of video {video} is not finite; extract it again")
            features[layer] = stored.to(device)
        own_text = torch.from_numpy(np.asarray(text)[pool.text_rows])
        return cls(pool, features, own_text.to(device, dtype), dtype=dtype)

    def part(self, keep: npt.NDArray[np.bool_]) -> "FeatureBank":
        """Return the bank of the videos of the mask ``keep`` [N], and of the classes that have any."""
        pool, rows = self.pool.part(keep), torch.from_numpy(np.flatnonzero(keep)).to(self.device)
        classes = torch.from_numpy(np.unique(self.pool.labels[keep])).to(self.device)
        features = {
            layer: store.part(pool) if isinstance(store, MappedRows) else store[rows]
            for layer, store in self._features.items()
        }
        return FeatureBank(
            pool, features, self.text[classes], dtype=self.dtype, shuffle_time=self.shuffle_time
        )

    def joined(self, other: "FeatureBank") -> "FeatureBank":
        """Return a bank with these layers and those of ``other``, which has the same videos."""
        return FeatureBank(self.pool, {**self._features, **other._features}, self.text, dtype=self.dtype)

    def shuffled(self) -> "FeatureBank":
        """Return a bank of the same features, with each clip's frames in random order."""
        return FeatureBank(self.pool, self._features, self.text, dtype=self.dtype, shuffle_time=True)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are held."""
        return tuple(self._features)

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.text.device

    @property
    def cached_views(self) -> int:
        """Number of cached views V."""
        return next(iter(self._features.values())).shape[1]

    @property
    def cached_frames(self) -> int:
        """Number of cached frames T'."""
        return next(iter(self._features.values())).shape[2]

    def sample(
        self, videos: npt.NDArray[np.int64], frames: int, generator: torch.Generator | None = None
    ) -> Clips:
        """Choose view and frames of ``videos`` [E, S].

        Without ``generator`` (evaluation): view 0 and the middle of ``frames`` equal segments. With one
        (training; a CPU generator): a random view, and a random frame inside each segment.
        """
        if videos.size and not 0 <= int(videos.min()) <= int(videos.max()) < len(self.pool.ids):
            raise ClipspmError(
                f"video {int(videos.min())}..{int(videos.max())} asked of the {self.pool.split} bank, "
                f"which holds 0..{len(self.pool.ids) - 1}"
            )
        cached = self.cached_frames
        check_frames(cached, frames)
        shape = (*videos.shape, frames)
        index = torch.from_numpy(np.ascontiguousarray(videos))
        if generator is None:
            views = torch.zeros_like(index)
            times = torch.from_numpy(middles(cached, frames)).expand(shape)
        else:
            views = torch.randint(self.cached_views, index.shape, generator=generator)
            edges = torch.arange(frames + 1) * cached // frames
            low, width = edges[:-1], edges.diff()
            times = low + (torch.rand(shape, generator=generator) * width).long().clamp(max=width - 1)
        if self.shuffle_time:
            keys = (
                self._eval_keys()[index, :frames]
                if generator is None
                else torch.rand(shape, generator=generator)
            )
            times = times.gather(-1, keys.argsort(dim=-1, stable=True))
        return Clips(index.to(self.device), views.to(self.device), times.to(self.device))

    def take(self, clips: Clips, layer: str = "final") -> Tensor:
        """Return the features of ``clips``, [E, S, T, D]."""
        store = self._features[layer]
        if isinstance(store, MappedRows):
            return store.take(clips).to(self.device, self.dtype)
        return store[clips.videos[..., None], clips.views[..., None], clips.frames].to(self.dtype)

    def gather(
        self,
        videos: npt.NDArray[np.int64],
        frames: int,
        generator: torch.Generator | None = None,
        layer: str = "final",
    ) -> Tensor:
        """Do :meth:`sample` and :meth:`take` in one: ``videos`` [E, S] -> [E, S, T, D]."""
        return self.take(self.sample(videos, frames, generator), layer)

    def nbytes(self) -> int:
        """Return the bytes of the features held in memory."""
        return sum(store.nbytes for store in self._features.values() if isinstance(store, Tensor))

    def _eval_keys(self) -> Tensor:
        """Return [N, T'] keys that sort each video's frames, the same for every batch and episode."""
        if self._shuffle_keys is None:
            seeded = torch.Generator().manual_seed(
                derive_seed("shuffle-time", self.pool.dataset, self.pool.split)
            )
            self._shuffle_keys = torch.rand(len(self.pool.ids), self.cached_frames, generator=seeded)
        return self._shuffle_keys


def read_rows(source: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return ``source[rows]`` for anything that takes slices (numpy, Zarr, HDF5), read block by block."""
    out = np.empty((len(rows), *source.shape[1:]), dtype=source.dtype)
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    cuts = np.flatnonzero(np.diff(ascending // _BLOCK)) + 1
    parts = np.split(order, cuts) if len(rows) else []
    for part in track(parts, "reading features", len(parts), "blocks"):
        low, high = int(rows[part[0]]), int(rows[part[-1]])
        out[part] = np.asarray(source[low : high + 1])[rows[part] - low]
    return out
