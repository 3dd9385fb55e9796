"""Render the demo's clips as H.264 files, one folder per class."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import av
import numpy as np
from numpy.typing import NDArray

from clipspm.progress import track

from .actions import FPS
from .worlds import MOTION, WORLDS

# mbtree reads uninitialised memory at this frame size, which makes the bytes differ from run to run
_X264 = {"preset": "veryfast", "crf": "18", "x264-params": "mbtree=0"}


def draw_clip(folder: str, *, seed: int, index: int, world: str = MOTION) -> NDArray[np.uint8]:
    """Draw clip ``index`` of class ``folder``, before encoding.  [FRAMES, SIDE, SIDE, 3]"""
    return WORLDS[world].draw(folder, np.random.default_rng([seed, crc32(folder.encode()), index]))


def write_mp4(path: Path, frames: NDArray[np.uint8], *, fps: int = FPS) -> None:
    """Write ``frames`` ``[T, H, W, 3]`` (H and W even) as H.264 in an MP4 file.

    The file appears under its name only when it is complete.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=fps, options=_X264)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def clip_files(
    root: Path, clips_per_class: int = 40, classes: Sequence[str] | None = None, *, world: str = MOTION
) -> list[tuple[Path, str, int]]:
    """The files of a world under ``root``: (path, class folder, index in the class).

    Raises ``ValueError`` for a folder that is not a class of ``world``.
    """
    known = WORLDS[world].names
    wanted = list(known) if classes is None else list(classes)
    unknown = [folder for folder in wanted if folder not in known]
    if unknown:
        raise ValueError(f"no demo class named {unknown[0]!r}; there are {', '.join(known)}")
    return [
        (root / folder / f"{folder}_{index:03d}.mp4", folder, index)
        for folder in wanted
        for index in range(clips_per_class)
    ]


def render_demo(
    root: Path,
    *,
    clips_per_class: int = 40,
    seed: int = 0,
    workers: int = 2,
    classes: Sequence[str] | None = None,
    world: str = MOTION,
) -> None:
    """Render the videos of ``world`` as ``root/<class folder>/<clip>.mp4``.

    A clip depends only on ``seed``, the world's videos, its class and its index. Existing files are kept: a
    second call only adds missing ones, so use one folder per seed. ``classes``: class folders of the world
    (default: all). Raises ``ValueError`` for a folder that is not one of them.
    """
    jobs = [file for file in clip_files(root, clips_per_class, classes, world=world) if not file[0].exists()]
    for folder in {path.parent for path, _, _ in jobs}:
        folder.mkdir(parents=True, exist_ok=True)

    def render(job: tuple[Path, str, int]) -> None:
        path, folder, index = job
        write_mp4(path, draw_clip(folder, seed=seed, index=index, world=world))

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for _ in track(pool.map(render, jobs), "rendering", len(jobs), "clips"):  # raises what a job raised
            pass
