"""A folder of good videos with at least a hundred hostile files among them, under random names."""

import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.support.media import (
    cut_without_decoding,
    hide_start,
    numbered_frames,
    refer_to,
    rotate_mp4,
    write_video,
)

#: characters that names of real data sets hold
ODD = "( ) [ ] # & ! + ; ' % $ ~ ="


@dataclass(frozen=True)
class File:
    """One file of the folder: ``kind`` says what is wrong with it, ``expected`` is ``ok`` or a category.

    Where that is FFmpeg's to say, and depends on its version, categories are joined by ``|``.
    """

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
    place("link to a device", "unreadable").symlink_to("/dev/zero")
    (place("folder without images", "no video stream") / "x").mkdir(parents=True)
    files.pop()  # the index knows that such a folder is no video
    _names_others(place, files[0].name)
    _cut(place, sources)
    _too_large(place, large)
    _folders_of_frames(place)
    # unusual, but to be read
    write_video(place("one frame", "ok"), textured(1))
    cut_without_decoding(groups, place("edit list", "ok"), 12)
    for options in ({"bf": "0", "g": "25"}, {"bf": "2", "g": "25"}, {"bf": "0", "g": "10"}):
        late = write_video(place("edit list that hides a third", "ok"), textured(75), options=options)
        hide_start(late, 1.0)
    for suffix, codec in ((".mpg", "mpeg2video"), (".ts", "libx264"), (".flv", "flv"), (".wmv", "wmv2")):
        write_video(place(f"whole {suffix}", "ok", suffix), textured(20), codec=codec)
    place("link to a video", "ok").symlink_to(root / files[0].name)
    for name in ("%03d", "concat:a|b", "file:c", "http://d"):
        target = place(f"named {name}", "ok", f" {name.replace('//', '')}.mp4")
        shutil.copy(plain, target)
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


Place = Callable[..., Path]


def _names_others(place: Place, good: str) -> None:
    """Files that are not videos, but name one: what they name is never opened."""
    name = "../" + good
    texts = {
        "ffconcat": f"ffconcat version 1.0\nfile '{name}'\n",
        "ffconcat, absolute": "ffconcat version 1.0\nfile /etc/hostname\n",
        "HLS": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{name}\n#EXT-X-ENDLIST\n",
        "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:'
        f'isoff-on-demand:2011"><Period><AdaptationSet><Representation><BaseURL>{name}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>",
        "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "ASX": f'<asx version="3.0"><entry><ref href="{name}"/></entry></asx>',
        "reference": f"[Reference]\nRef1={name}\n",
        "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nhello\n" * 9,
        "vobsub": "# VobSub index file, v7 (do not modify this line!)\nsize: 720x480\n",
        "URL": "http://127.0.0.1/video.mp4\n",
    }
    for kind, text in texts.items():
        place(kind, "wrong format|unreadable", ".wmv" if kind == "ASX" else ".mp4").write_text(text)
    place("ffconcat", "wrong format", ".avi").write_text(texts["ffconcat"])
    for kind, content in (
        (b"url ", b"file:///clip.mov\0"),
        (b"alis", b"\0" * 100 + b"clip.mov" + b"\0" * 100),
    ):
        path = write_video(place("pictures elsewhere", "points elsewhere", ".mov"), textured(9))
        refer_to(path, kind, content)
    for suffix in (".nut", ".mxf", ".wav", ".dv"):
        source = place(f"{suffix} as .mp4", "wrong format")
        made = source.with_name("made" + suffix)
        if suffix == ".wav":
            write_audio(made)
        elif suffix == ".dv":
            write_video(made, textured(2, 576, 720), codec="dvvideo")
        else:
            write_video(made, textured(9), codec="mpeg2video")
        made.rename(source)


def _cut(place: Place, sources: Path) -> None:
    """Files that end too early for what they state."""
    kinds = {
        ".ts": "libx264",
        ".mpg": "mpeg2video",
        ".flv": "flv",
        ".wmv": "wmv2",
        ".avi": "mpeg4",
        ".ogv": "libvpx",
    }
    for suffix, codec in kinds.items():
        data = write_video(sources / f"plain{suffix}", textured(40), codec=codec).read_bytes()
        for share in (0.3, 0.55, 0.8):
            length = int(len(data) * share)
            if suffix == ".ts" and length % 188 == 0:
                length += 1  # no reader can tell that it was cut
            place(f"{suffix} cut off at {share}", "unreadable", suffix).write_bytes(data[:length])


def _too_large(place: Place, large: bool) -> None:
    """A few bytes that are many pixels."""
    avi = write_video(place("AVI of 12000 x 12000", "too large", ".avi"), textured(5), codec="ffv1")
    data = bytearray(avi.read_bytes())
    struct.pack_into("<ii", data, data.index(b"strf") + 12, 12000, 12000)
    avi.write_bytes(bytes(data))
    write_video(place("600 x 4", "wrong size", ".mkv"), textured(5, 4, 600), codec="ffv1")
    place("PNG of 12000 x 12000 as .mp4", "too large").write_bytes(png_of(12000))
    if large:
        with av.open(str(place("8704 x 8704", "too large")), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.width = stream.height = 8704
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            for packet in [*stream.encode(av.VideoFrame(8704, 8704, "yuv420p")), *stream.encode()]:
                container.mux(packet)


def png_of(side: int) -> bytes:
    """The head of a PNG that claims so many pixels each way."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, data, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _folders_of_frames(place: Place) -> None:
    """Folders of images, one of which is not as it should be."""

    def folder(kind: str, expected: str) -> Path:
        path = place(kind, expected, "")
        path.mkdir()
        for i, image in enumerate(textured(6)):
            Image.fromarray(image).save(path / f"{i}.png")
        return path

    folder("images", "ok")
    (folder("link to an image beside it", "ok") / "6.png").symlink_to("5.png")
    outside = folder("images whose folder is linked", "ok")
    place("link to a folder of images", "ok", "").symlink_to(outside)
    os.mkfifo(folder("FIFO among images", "unreadable") / "6.png")
    (folder("folder among images", "unreadable") / "6.png").mkdir()
    (folder("dangling link among images", "unreadable") / "6.png").symlink_to("nowhere.png")
    (folder("link to another clip's image", "points elsewhere") / "6.png").symlink_to(outside / "0.png")
    (folder("link to a device among images", "points elsewhere") / "6.png").symlink_to("/dev/zero")
    for kind, expected, data in (
        ("image cut off", "unreadable", (outside / "0.png").read_bytes()[:900]),
        ("image of 30000 x 30000", "too large", png_of(30000)),
        ("image of 9000 x 9000", "too large", png_of(9000)),
        (
            "PostScript as an image",
            "unreadable",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n",
        ),
        ("empty image", "unreadable", b""),
    ):
        (folder(kind, expected) / "0.png").write_bytes(data)
    Image.fromarray(textured(1, 50, 64)[0]).save(folder("image of another size", "wrong size") / "0.png")


def hostile(files: list[File]) -> Iterator[File]:
    """The files that are not plain good ones."""
    return (f for f in files if f.kind != "good")
