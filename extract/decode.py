"""Right frames out of video files.

The frame at index ``i`` is, always, the ``i``-th frame that a sequential decode of the file yields.
Indexed decoding (decord) breaks that promise without a word on streams with missing packet timestamps,
edit lists, open groups of pictures or state that outlives a keyframe, repeats frames of damaged files,
and can even hang. So the packets are inspected first (no decoding, milliseconds); where nothing speaks
against an index *and* the clip is long enough for it to pay, the decoder seeks to the keyframe before each
frame; everything else is decoded from the start. decord is there for those who ask for it, under the same
conditions.

A file that is cut off, or whose decoder reports damage in a frame that is taken or one that it builds on,
is refused. Damage that leaves a valid stream cannot be seen: most formats hold no checksums.

Shapes: T frames, H rows, W columns.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, Literal

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from clipspm.errors import ClipspmError, plain
from clipspm.extract.suffixes import is_frame_name

Backend = Literal["auto", "pyav", "decord"]
Category = Literal[
    "missing", "unreadable", "no video stream", "too short", "timeout", "crashed", "wrong size"
]

#: codecs whose keyframes restart the decoder bit for bit (MPEG-4 part 2 was seen not to)
_SEEKABLE_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
#: clips shorter than this decode from the start about as fast as they seek
_SEEK_PAYS_FRAMES = 240
#: metadata need not be UTF-8: PyAV before 19 has to be told so, later ones do not take the argument
LENIENT: dict[str, Any] = (
    {"metadata_errors": "replace"} if hasattr(av.container.Container, "metadata_errors") else {}
)


class DecodeError(ClipspmError):
    """A video that cannot give its frames; ``category`` says why in one of a few fixed terms."""

    def __init__(self, category: Category, path: Path, detail: str) -> None:
        self.category: Category = category
        self.detail = detail
        self.path = path
        super().__init__(f"{category}: {path}: {detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodeError, (self.category, self.path, self.detail)


@dataclass(frozen=True)
class Frames:
    """Decoded frames of one video and where they came from.

    ``frames`` uint8 [T, H, W, 3] upright RGB; ``indices`` int64 [T], counted in sequentially decoded
    frames; ``pts_seconds`` float64 [T], NaN where the file gives no timestamp; ``backend`` is ``pyav``,
    ``decord`` or ``images``; ``total`` frames in the video; ``fps`` if known.
    """

    frames: np.ndarray
    indices: np.ndarray
    pts_seconds: np.ndarray
    backend: str
    total: int
    fps: float | None


def segment_middles(total: int, count: int) -> np.ndarray:
    """The middle frame of each of ``count`` equal segments of ``total`` frames, int64 [count].

    With fewer frames than segments, frames repeat: ``segment_middles(2, 4)`` is ``[0, 0, 1, 1]``.
    """
    if total < 1 or count < 1:
        raise ValueError(f"need at least one frame and one segment, got {total} frames, {count} segments")
    return ((2 * np.arange(count, dtype=np.int64) + 1) * total) // (2 * count)


def read_frames(
    path: str | Path, count: int = 8, *, backend: Backend = "auto", min_frames: int = 1
) -> Frames:
    """Read ``count`` frames of a video, one from the middle of each of as many equal segments.

    ``path`` is a video file or a directory of already extracted frames (images in natural order).
    ``backend="pyav"`` forces a sequential decode; ``"decord"`` is a preference that gives way to a
    sequential decode wherever the index cannot be trusted.

    Raises :class:`DecodeError` (missing, unreadable, no video stream, too short, wrong size).
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    path = Path(path)
    try:
        if path.is_dir():
            result = _read_images(path, count)
        elif not S_ISREG(path.stat().st_mode):
            raise DecodeError("unreadable", path, "not a regular file")
        else:
            result = _read_video(path, count, backend)
    except FileNotFoundError:
        raise DecodeError("missing", path, "no such file") from None
    except OSError as error:  # FFmpeg's errors are OSErrors or ValueErrors, depending on the code
        raise DecodeError("unreadable", path, plain(error)) from error
    except FFmpegError as error:
        raise DecodeError("unreadable", path, plain(error)) from error
    if result.total < min_frames:
        raise DecodeError("too short", path, f"{result.total} frames, at least {min_frames} asked for")
    return result


def count_frames(path: Path) -> int:
    """How many frames the packets of a video promise, without decoding one; raises :class:`DecodeError`."""
    try:
        if path.is_dir():
            return sum(is_frame_name(p.name) for p in path.iterdir())
        if not S_ISREG(path.stat().st_mode):
            raise DecodeError("unreadable", path, "not a regular file")
        return _inspect(path).shown
    except FileNotFoundError:
        raise DecodeError("missing", path, "no such file") from None
    except (OSError, FFmpegError) as error:
        raise DecodeError("unreadable", path, plain(error)) from error


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which ``frame_2`` comes before ``frame_10``."""
    return [
        (0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"([0-9]+)", name)
    ]


# ---------------------------------------------------------------------------------------------- packets


@dataclass(frozen=True)
class _Packets:
    """What the container says of its video packets, without decoding one."""

    shown: int  # packets that should give a frame
    trusted: bool  # an index over them is the index of a sequential decode
    pts: tuple[int, ...] = ()  # sorted, in units of time_base; these three only if trusted
    keyframes: tuple[int, ...] = ()  # their pts, sorted
    time_base: float = 1.0

    @property
    def pts_seconds(self) -> np.ndarray:
        """[shown]"""
        return np.asarray(self.pts, np.float64) * self.time_base


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    with av.open(str(path), **LENIENT) as container:
        if not container.streams.video:
            raise DecodeError("no video stream", path, "the file holds no video")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DecodeError("unreadable", path, "no decoder for its video codec")
        stream.codec_context.thread_count = 1  # many workers beat many threads
        yield container, stream


def _inspect(path: Path) -> _Packets:
    _check_size(path)
    with _open_video(path) as (container, stream):
        promised, codec, time_base = stream.frames, stream.codec_context.name, stream.time_base
        pts: list[int | None] = []
        keyframes: list[bool] = []
        clean = True
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                raise DecodeError("unreadable", path, f"damaged or cut off after {len(pts)} packets")
            if packet.is_discard:  # an edit list hides these from a viewer
                clean = False
                continue
            pts.append(packet.pts)
            keyframes.append(packet.is_keyframe)
            clean = clean and packet.pts is not None and packet.pts >= 0
        start_time = stream.start_time
    if promised and clean and len(pts) < 0.9 * promised:
        raise DecodeError(
            "unreadable",
            path,
            f"cut off: its header promises {promised} frames, {len(pts)} are there",
        )
    trusted = (
        clean
        and len(pts) > 0
        and codec in _SEEKABLE_CODECS
        and keyframes[0]
        and not (start_time or 0) < 0
        and promised in (0, len(pts))
        and len(set(pts)) == len(pts)
        and _closed_groups(pts, keyframes)
    )
    if not trusted:
        return _Packets(len(pts), False)
    known = [int(time) for time in pts if time is not None]
    keys = sorted(time for time, is_key in zip(known, keyframes, strict=True) if is_key)
    return _Packets(len(pts), True, tuple(sorted(known)), tuple(keys), float(time_base))


def _check_size(path: Path) -> None:
    """Refuse an MP4 or Matroska file that ends before what its own sizes say (ISO 14496-12, RFC 8794)."""
    there = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        end = 0
        if head[4:8] == b"ftyp":
            end = _end_of_boxes(file, there)
        elif head.startswith(b"\x1a\x45\xdf\xa3"):
            size, start = _ebml_size(head, 4)
            start += size or 0
            if head[start : start + 4] == b"\x18\x53\x80\x67":
                size, start = _ebml_size(head, start + 4)
                end = start + (size or 0)
    if end > there:
        raise DecodeError("unreadable", path, f"cut off: {end} bytes promised, {there} are there")


def _end_of_boxes(file: BinaryIO, there: int) -> int:
    """Where the last of an MP4 file's top-level boxes says that it ends."""
    at = 0
    while at + 8 <= there:
        file.seek(at)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: up to the end of the file; others make no sense
            return at
        at += size
    return at


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """The EBML size at ``at`` (None: unknown, as in live streams), and where what it sizes begins."""
    length = 9 - data[at].bit_length() if at < len(data) and data[at] else 0
    if not length or at + length > len(data):
        return None, at
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length


def _closed_groups(pts: list[Any], keyframes: list[bool]) -> bool:
    """Whether no packet behind a keyframe is shown before it."""
    latest_key = None
    for time, is_key in zip(pts, keyframes, strict=True):
        if is_key:
            latest_key = time
        elif latest_key is None or time < latest_key:
            return False
    return True


# ----------------------------------------------------------------------------------------------- decode


def _read_video(path: Path, count: int, backend: Backend) -> Frames:
    packets = _inspect(path)
    found = None
    if packets.trusted and backend == "decord":
        found = _read_indexed(path, count, packets)
    elif packets.trusted and backend == "auto" and packets.shown >= _SEEK_PAYS_FRAMES:
        found = _read_seeking(path, count, packets)
    if found is not None:
        return found
    return _read_sequential(path, count, packets.shown)


def _read_sequential(path: Path, count: int, estimate: int) -> Frames:
    """Decode from the start, keeping the frames wanted; a second pass only if the count was misjudged."""
    totals = {max(1, estimate - missing) for missing in range(4)}  # encoders' delay often costs 1 or 2
    while True:
        wanted = {int(i) for total in totals for i in segment_middles(total, count)}
        kept, damaged, total, fps = _decode(path, wanted)
        if total == 0:
            raise DecodeError("unreadable", path, "no frame could be decoded")
        if total < 0.9 * estimate:
            raise DecodeError(
                "unreadable", path, f"only {total} of {estimate} packets could be decoded to frames"
            )
        indices = segment_middles(total, count)
        if all(int(i) in kept for i in indices):
            break
        totals = {total}
    for i in indices:
        if int(i) in damaged:
            raise _damaged_frame(path, int(i))
    return _frames(path, [kept[int(i)] for i in indices], indices, total, fps)


def _damaged_frame(path: Path, index: int) -> DecodeError:
    return DecodeError("unreadable", path, f"frame {index}, or one that it builds on, is damaged")


def _frames(path: Path, chosen: list[Any], indices: np.ndarray, total: int, fps: float | None) -> Frames:
    converter = VideoReformatter()  # one for all: most of a conversion is setting it up
    images = {id(frame): _upright(frame, converter) for frame in {id(f): f for f in chosen}.values()}
    shapes = {image.shape for image in images.values()}
    if len(shapes) > 1:
        raise DecodeError("wrong size", path, f"the frame size changes within the video: {sorted(shapes)}")
    return Frames(
        frames=np.stack([images[id(frame)] for frame in chosen]),
        indices=indices,
        pts_seconds=np.array([np.nan if f.time is None else f.time for f in chosen], np.float64),
        backend="pyav",
        total=total,
        fps=fps,
    )


def _decode(path: Path, wanted: set[int]) -> tuple[dict[int, Any], set[int], int, float | None]:
    """One pass: the wanted frames by index, those of them that are damaged, the number of frames, and fps."""
    kept: dict[int, Any] = {}
    damaged: set[int] = set()
    total, tainted = 0, False
    with _open_video(path) as (container, stream):
        fps = float(stream.average_rate) if stream.average_rate else None
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except FFmpegError as error:
                if total == 0 and packet.size:  # a cut in mid-group starts with undecodable packets
                    continue
                raise DecodeError(
                    "unreadable", path, f"decoding fails after frame {total}: {plain(error)}"
                ) from error
            for frame in decoded:
                tainted = frame.is_corrupt or (tainted and not frame.key_frame)
                if total in wanted:
                    kept[total] = frame
                    if tainted:
                        damaged.add(total)
                total += 1
    return kept, damaged, total, fps


def _read_seeking(path: Path, count: int, packets: _Packets) -> Frames | None:
    """Decode only from the keyframe before each wanted frame, told by its time; None where that fails."""
    indices = segment_middles(packets.shown, count)
    wanted: dict[int, list[int]] = {}  # by keyframe, in order
    for i in indices:
        key = packets.keyframes[bisect_right(packets.keyframes, packets.pts[i]) - 1]
        wanted.setdefault(key, []).append(packets.pts[i])
    found: dict[int, Any] = {}
    with _open_video(path) as (container, stream):
        fps = float(stream.average_rate) if stream.average_rate else None
        for key, times in wanted.items():
            container.seek(key, stream=stream)
            tainted = False
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts > times[-1]:
                    break
                tainted = frame.is_corrupt or (tainted and not frame.key_frame)
                if frame.pts in times:
                    if tainted:
                        raise _damaged_frame(path, packets.pts.index(frame.pts))
                    found[frame.pts] = frame
                if frame.pts == times[-1]:
                    break
    if any(packets.pts[i] not in found for i in indices):
        return None
    return _frames(path, [found[packets.pts[i]] for i in indices], indices, packets.shown, fps)


def _upright(frame: Any, converter: VideoReformatter) -> np.ndarray:
    """A decoded frame as upright RGB, uint8 [H, W, 3]: the display rotation is applied."""
    image = converter.reformat(frame, format="rgb24").to_ndarray()
    turns = round(frame.rotation / 90) % 4  # FFmpeg counts counter-clockwise, and so does rot90
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _read_indexed(path: Path, count: int, packets: _Packets) -> Frames | None:
    """Frames through decord's index, or None where its own account contradicts the container's."""
    try:
        import decord
    except ImportError:
        return None
    if _is_rotated(path):
        return None
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        total = len(reader)
        if total != packets.shown:
            return None
        starts = np.asarray(reader.get_frame_timestamp(range(total)))[:, 0]
        tolerance = 0.5 / max(float(reader.get_avg_fps()), 1.0)
        if (starts < 0).any() or (np.abs(starts - packets.pts_seconds) > tolerance).any():
            return None
        indices = segment_middles(total, count)
        frames = reader.get_batch(indices.tolist()).asnumpy()
        fps = float(reader.get_avg_fps())
    except (decord.DECORDError, RuntimeError):
        return None
    return Frames(frames, indices, packets.pts_seconds[indices], "decord", total, fps)


def _is_rotated(path: Path) -> bool:
    with _open_video(path) as (container, stream):
        return any(frame.rotation for frame in _first(container.decode(stream)))


def _first(frames: Iterator[Any]) -> Iterator[Any]:
    for frame in frames:
        yield frame
        return


# ----------------------------------------------------------------------------------------------- images


def _read_images(path: Path, count: int) -> Frames:
    """Frames of a directory of images, in natural order of their names."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    names = sorted((p.name for p in path.iterdir() if is_frame_name(p.name)), key=natural_key)
    if not names:
        raise DecodeError("no video stream", path, "the directory holds no images")
    indices = segment_middles(len(names), count)
    images: dict[int, np.ndarray] = {}
    for i in {int(i) for i in indices}:
        try:
            with Image.open(path / names[i]) as image:
                images[i] = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise DecodeError("unreadable", path / names[i], plain(error)) from error
    shapes = {image.shape for image in images.values()}
    if len(shapes) > 1:
        raise DecodeError("wrong size", path, f"its frames differ in size: {sorted(shapes)}")
    return Frames(
        frames=np.stack([images[int(i)] for i in indices]),
        indices=indices,
        pts_seconds=np.full(count, np.nan),
        backend="images",
        total=len(names),
        fps=None,
    )
