"""Real video files and tiny encoders, made on the spot."""

import json
import struct
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from clipspm.extract.containers import LENIENT


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that can be told apart: a bright bar moves, and brightness follows the index."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for i in range(count):
        frames[i] = (i * 5) % 200
        left = (i * 3) % (width - 8)
        frames[i, :, left : left + 8] = (250, 40, 10)
    frames[:, : height // 3, : width // 3] = (10, 240, 30)  # a mark at the top left
    return frames


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    fps: int = 25,
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
) -> Path:
    """Encode uint8 [T, H, W, 3]; ``pts`` (in 1/1000 s) makes the frame rate vary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if codec != "libsvtav1":
        return _encode(path, frames, codec, fps, options, pts)
    # SVT-AV1 gives its process real-time priority if it may (as root). Threads of torch that spin then starve
    # those that they wait for, and the whole machine.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return apart.submit(_encode, path, frames, codec, fps, options, pts).result()


def _encode(
    path: Path,
    frames: np.ndarray,
    codec: str,
    fps: int,
    options: dict[str, str] | None,
    pts: list[int] | None,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[i], Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def sequential(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Every frame in decoding order and its time in seconds: the plain reference."""
    with av.open(str(path), **LENIENT) as container:
        frames = list(container.decode(video=0))
        images = np.stack([f.to_ndarray(format="rgb24") for f in frames])
        return images, np.array([np.nan if f.time is None else f.time for f in frames])


def rotate_mp4(path: Path, degrees_clockwise: int) -> None:
    """Write a display rotation into an MP4's track header, as phones do."""
    show_mp4(path, {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees_clockwise])


def show_mp4(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix (a, b, c, d: x' = a x + c y, y' = b x + d y) into an MP4's track header."""
    a, b, c, d = matrix
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    long_form = data[header + 4] == 1
    start = header + 4 + (52 if long_form else 40)
    scale = (1 << 16, 1 << 16, 1 << 30) * 3
    values = [v * s for v, s in zip((a, b, 0, c, d, 0, 0, 0, 1), scale, strict=True)]
    data[start : start + 36] = struct.pack(">9i", *values)
    path.write_bytes(bytes(data))


def cut_without_decoding(source: Path, target: Path, first: int) -> Path:
    """Copy the packets behind a starting frame that is no keyframe: the MP4 gets an edit list."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        out = writer.add_stream_from_template(stream)
        packets = [p for p in reader.demux(stream) if p.size]
        start = sorted(p.pts for p in packets)[first]
        for packet in packets:
            packet.pts -= start
            packet.dts -= start
            packet.stream = out
            writer.mux(packet)
    return target


def hide_start(path: Path, seconds: float) -> Path:
    """Have the edit list of an MP4 begin so late."""
    data = bytearray(path.read_bytes())
    edit, header = data.index(b"elst"), data.index(b"mdhd")
    (scale,) = struct.unpack_from(">I", data, header + 16)
    (start,) = struct.unpack_from(">I", data, edit + 16)
    struct.pack_into(">I", data, edit + 16, start + int(seconds * scale))
    path.write_bytes(bytes(data))
    return path


def refer_to(path: Path, kind: bytes, content: bytes) -> Path:
    """Have an MP4 of one track, its index at the end, say that its pictures are in another file."""
    data = bytearray(path.read_bytes())
    place = data.index(b"url ", data.index(b"dref"))
    data[place - 4 : place + 8] = struct.pack(">I4sI", 12 + len(content), kind, 0) + content
    for name in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = data.index(name, data.index(b"moov")) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + len(content))
    path.write_bytes(bytes(data))
    return path


def add_cover(path: Path, png: bytes) -> Path:
    """Put a cover picture before the tracks of an MP4 whose index is at the end."""

    def box(name: bytes, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return struct.pack(">I4s", 8 + len(content), name) + content

    data = path.read_bytes()
    at = data.index(b"moov") - 4
    size = struct.unpack_from(">I", data, at)[0]
    head = struct.unpack_from(">I", data, at + 8)[0]  # of the movie's header, which comes first
    cover = box(b"ilst", box(b"covr", box(b"data", struct.pack(">II", 14, 0), png)))
    kind = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    meta = box(b"udta", box(b"meta", bytes(4), kind, cover))
    inner = data[at + 8 : at + size]
    path.write_bytes(data[:at] + box(b"moov", inner[:head], meta, inner[head:]) + data[at + size :])
    return path


TINY_CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def register_architecture(folder: Path, name: str, config: dict) -> str:
    """Make an architecture known to open_clip under ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return name


def tiny_local_dir(folder: Path, config: dict = TINY_CONFIG, seed: int = 0, **pixels: Any) -> str:
    """A tiny random encoder as an open_clip ``local-dir:``; ``pixels``: more of its preprocessing."""
    folder.mkdir(parents=True, exist_ok=True)
    name = register_architecture(folder / "arch", f"tiny-{folder.name}", config)
    torch.manual_seed(seed)
    model = open_clip.create_model(name)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, str(folder / "open_clip_model.safetensors"))
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, **pixels}})
    )
    return f"local-dir:{folder}"
