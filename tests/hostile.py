"""A folder of good videos with at least forty hostile files among them, under random names."""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.media import cut_without_decoding, numbered_frames, rotate_mp4, write_video

#: characters that names of real data sets hold
ODD = "( ) [ ] # & ! + ; ' % $ ~ ="


@dataclass(frozen=True)
class File:
    """One file of the folder: ``kind`` says what is wrong with it, ``expected`` is ``ok`` or a category."""

    name: str
    kind: str
    expected: str


def textured(count: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Frames with enough content that an encoder's packets are large."""
    noise = np.random.default_rng(seed).integers(0, 60, (count, height, width, 3), np.uint8)
    return np.clip(numbered_frames(count, height, width).astype(np.int16) + noise, 0, 255).astype(np.uint8)


def write_audio(path: Path, codec: str = "pcm_s16le", seconds: float = 0.5) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8000, layout="mono")
        samples = np.zeros((1, int(8000 * seconds)), np.int16 if codec == "pcm_s16le" else np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "s16" if codec == "pcm_s16le" else "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def build(root: Path, *, good: int = 6, seed: int = 0, large: bool = True) -> list[File]:
    """Fill ``root`` (class folders) and say what is in it. ``large``: with an 8K clip."""
    rng = random.Random(seed)
    files: list[File] = []
    sources = root.parent / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    for name in ("wave", "run", "jump"):
        (root / name).mkdir(parents=True, exist_ok=True)

    def place(kind: str, expected: str, suffix: str = ".mp4") -> Path:
        stem = "".join(rng.choices("abcdefgh", k=6)) + rng.choice(ODD.split(" ")) + f" {len(files):03d}"
        path = root / rng.choice(("wave", "run", "jump")) / (stem + suffix)
        files.append(File(path.relative_to(root).as_posix(), kind, expected))
        return path

    for i in range(good):
        codec = ("libx264", "mpeg4")[i % 2]
        write_video(place("good", "ok", (".mp4", ".avi")[i % 2]), textured(20 + 3 * i, seed=i), codec=codec)
    plain = write_video(sources / "plain.mp4", textured(40))
    groups = write_video(sources / "groups.mp4", textured(40), options={"g": "8"})
    whole = plain.read_bytes()
    matroska = write_video(sources / "plain.mkv", textured(40), options={"g": "8"}).read_bytes()
    for name, data in (("empty", b""), ("text", b"hello\n" * 50), ("zeros", bytes(5000))):
        place(name, "unreadable").write_bytes(data)
    for i in range(20):  # at 20 points, in an MP4 (its index at the end) and a Matroska file in turn
        data, suffix = ((whole, ".mp4"), (matroska, ".mkv"))[i % 2]
        cut = int(len(data) * (i + 1) / 21)
        place(f"cut off at {i + 1}/21", "unreadable", suffix).write_bytes(data[:cut])
    for i in range(8):  # holes in the middle of the pictures
        data = bytearray(whole)
        start = int(len(data) * (0.15 + 0.08 * i))
        data[start : start + 600] = rng.randbytes(600)
        place("corrupt in the middle", "unreadable").write_bytes(bytes(data))
    for suffix, codec in ((".mp4", "aac"), (".mkv", "pcm_s16le")):
        write_audio(place("audio only", "no video stream", suffix), codec)
    with av.open(str(place("no frames", "no video stream")), "w") as container:
        container.add_stream("libx264", rate=25).width = 64
        container.start_encoding()
    os.mkfifo(place("FIFO", "unreadable", ".avi"))
    loop = place("symlink loop", "unreadable")
    loop.symlink_to(loop)
    place("dangling symlink", "missing").symlink_to(root / "nowhere.mp4")
    (place("folder without images", "no video stream") / "x").mkdir(parents=True)
    files.pop()  # the index knows that such a folder is no video
    # unusual, but to be read
    write_video(place("one frame", "ok"), textured(1))
    cut_without_decoding(groups, place("edit list", "ok"), 12)
    shutil.copy(plain, place("wrong extension", "ok", ".avi"))
    write_video(place("variable frame rate", "ok", ".mkv"), textured(12), pts=[0, 10, 50, 60, 300, 310, 311, 500, 900, 901, 1500, 1600])  # fmt: skip
    write_video(place("AV1", "ok"), textured(12, 64, 64), codec="libsvtav1")
    write_video(place("odd size", "ok", ".mkv"), textured(9, 33, 57), codec="ffv1")
    for degrees in (90, 180, 270):
        rotated = place(f"rotated by {degrees}", "ok")
        shutil.copy(plain, rotated)
        rotate_mp4(rotated, degrees)
    if large:
        frames = np.repeat(np.repeat(numbered_frames(3, 72, 128), 60, 1), 60, 2)
        write_video(place("8K", "ok"), frames, options={"preset": "ultrafast"})
    return files


def hostile(files: list[File]) -> Iterator[File]:
    """The files that are not plain good ones."""
    return (f for f in files if f.kind != "good")
