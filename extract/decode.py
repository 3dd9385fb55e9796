"""Read frames from video files.

Frame ``i`` is always the ``i``-th frame that a sequential decode of the file yields. Indexed decoding
(decord) silently returns other frames on streams with missing packet timestamps, edit lists, open groups of
pictures or state that outlives a keyframe, repeats frames of damaged files, and can even hang. Therefore the
packets are inspected first (no decoding, milliseconds). If the index can be trusted and the clip is long
enough to gain from it, the decoder seeks to the keyframe before each frame; otherwise the file is decoded
from the start. decord and torchcodec are used where they are asked for, and only if the index can be trusted.

Refused are truncated files, and files whose decoder reports damage in a frame that is used or that it
depends on. Damage that leaves a valid stream goes unnoticed: most formats hold no checksums.

Shapes: T frames, H rows, W columns.
"""

import os
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from clipspm.errors import ClipspmError, plain
from clipspm.extract.containers import check_shape, check_whole, open_video
from clipspm.extract.failures import DecodeError
from clipspm.extract.frames import Frames, segment_middles
from clipspm.extract.suffixes import is_frame_name

Backend = Literal["auto", "pyav", "decord", "torchcodec"]
#: those that read by index, and how to install what is not there
INDEXED = {"decord": "pip install decord", "torchcodec": "pip install 'clipspm[torchcodec]'"}

#: codecs that decode bit for bit the same from any keyframe (MPEG-4 part 2 was seen not to)
_SEEKABLE_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
#: clips of fewer frames decode from the start about as fast as by seeking
_SEEK_PAYS_FRAMES = 240
#: bytes of decoded frames that are held until it is known which of them are used
_MOST_HELD = 2**28
#: Pillow's names of the image formats accepted in frame folders; some of its others start other programs
_IMAGE_KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

#: makes what is kept of a frame from upright RGB, uint8 [H, W, 3]
Each = Callable[[np.ndarray], np.ndarray]


def read_frames(
    path: str | Path,
    count: int = 8,
    *,
    backend: Backend = "auto",
    min_frames: int = 1,
    each: Each | None = None,
) -> Frames:
    """Read ``count`` frames of a video, one from the middle of each of as many equal segments.

    ``path`` is a video file or a directory of extracted frames (images in natural order). ``backend="pyav"``
    forces a sequential decode; ``"decord"`` and ``"torchcodec"`` use those where the index can be trusted,
    else a sequential decode; neither reports damaged pictures. ``each`` maps every frame that is used
    (upright RGB) to what is kept of it, such as a smaller image, so that full-size frames need not be held
    at once.

    Raises :class:`DecodeError`, also if the video has fewer than ``min_frames`` frames.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    path = Path(path)
    convert = _Converter(path, each)
    with _as_decode_errors(path):
        result = (
            _read_images(path, count, convert)
            if path.is_dir()
            else _read_video(path, count, backend, convert)
        )
    if result.total < min_frames:
        raise DecodeError("too short", path, f"{result.total} frames, at least {min_frames} required")
    return result


def count_frames(path: Path) -> int:
    """The number of frames of a video by its packets, without decoding; raises :class:`DecodeError`."""
    with _as_decode_errors(path):
        return len(_image_files(path)) if path.is_dir() else _inspect(path).shown


def length(path: str | Path) -> float | None:
    """Return how many seconds a video shows, by its packets; None if it has no times or cannot be read."""
    path = Path(path)
    if path.is_dir():
        return None
    try:
        with _as_decode_errors(path), open_video(path) as (_, stream):
            rate = float(stream.average_rate or 0)
        return count_frames(path) / rate if rate > 0 else None
    except DecodeError:
        return None


def read_steadily(path: str | Path, step: float, *, each: Each | None = None) -> Iterator[np.ndarray]:
    """Yield the frames that a video shows at ``step / 2``, ``3 * step / 2``, ... seconds after its start.

    Frames are decoded once, in order, and are as :func:`read_frames` gives them. ``path`` is a file: folders
    of frames have no times. Raises :class:`DecodeError`, for damage when it comes to it.
    """
    path = Path(path)
    if path.is_dir():
        raise DecodeError("no video stream", path, "a folder of frames has no times: name a video file")
    convert = _Converter(path, each)
    with _as_decode_errors(path), open_video(path) as (container, stream):
        rate = float(stream.average_rate or 25)
        shown: Any = None
        start, tick, count, tainted = 0.0, 0, 0, False
        for frame in container.decode(stream):
            tainted = frame.is_corrupt or (tainted and not frame.key_frame)
            if tainted:
                raise _damaged_frame(path, count)
            time = count / rate if frame.time is None else float(frame.time)
            start = time if count == 0 else start
            while shown is not None and (tick + 0.5) * step < time - start:
                yield convert(shown)
                tick += 1
            shown, end, count = frame, time - start + 1 / rate, count + 1
        while shown is not None and (tick + 0.5) * step < end:
            yield convert(shown)
            tick += 1


@contextmanager
def _as_decode_errors(path: Path) -> Iterator[None]:
    """Turn errors inside the block into :class:`DecodeError`."""
    try:
        yield
    except MemoryError as error:
        raise DecodeError("out of memory", path, "it needs more memory than this process may use") from error
    except FileNotFoundError:
        raise DecodeError("missing", path, "no such file") from None
    except (OSError, FFmpegError) as error:  # some of FFmpeg's errors are ValueErrors
        raise DecodeError("unreadable", path, plain(error)) from error


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``frame_2`` before ``frame_10``."""
    return [
        (0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"([0-9]+)", name)
    ]


# ---------------------------------------------------------------------------------------------- packets


@dataclass(frozen=True)
class _Packets:
    """The video packets of a container, read without decoding."""

    shown: int  # packets that should give a frame
    trusted: bool  # whether packets sorted by pts are the frames of a sequential decode
    pts: tuple[int, ...] = ()  # sorted, in units of time_base; these three only if trusted
    keyframes: tuple[int, ...] = ()  # their pts, sorted
    time_base: float = 1.0

    @property
    def pts_seconds(self) -> np.ndarray:
        """[shown]"""
        return np.asarray(self.pts, np.float64) * self.time_base


def _inspect(path: Path) -> _Packets:
    if not S_ISREG(path.stat().st_mode):
        raise DecodeError("unreadable", path, "not a regular file")
    whole = check_whole(path)
    with open_video(path) as (container, stream):
        promised, codec, time_base = stream.frames, stream.codec_context.name, stream.time_base
        pts: list[int | None] = []
        keyframes: list[bool] = []
        clean = True
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                raise DecodeError("unreadable", path, f"damaged or truncated after {len(pts)} packets")
            if packet.is_discard:  # hidden by an edit list
                clean = False
                continue
            pts.append(packet.pts)
            keyframes.append(packet.is_keyframe)
            clean = clean and packet.pts is not None and packet.pts >= 0
        start_time = stream.start_time
    # without a stated file size, only the stated number of frames can reveal a truncated file
    if not whole and clean and len(pts) < 0.9 * promised and (there := _all_packets(path)) < 0.9 * promised:
        detail = f"truncated: {there} frames, its header says {promised}"
        raise DecodeError("unreadable", path, detail)
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


def _all_packets(path: Path) -> int:
    """The number of packets, including those that an edit list hides."""
    with open_video(path, ignore_editlist="1") as (container, stream):
        return sum(packet.size > 0 for packet in container.demux(stream))


def _closed_groups(pts: list[Any], keyframes: list[bool]) -> bool:
    """Whether no packet after a keyframe is shown before it."""
    latest_key = None
    for time, is_key in zip(pts, keyframes, strict=True):
        if is_key:
            latest_key = time
        elif latest_key is None or time < latest_key:
            return False
    return True


# ----------------------------------------------------------------------------------------------- decode


class _Converter:
    """Converts decoded frames to what is kept of them; all frames of a video must have the same size."""

    def __init__(self, path: Path, each: Each | None) -> None:
        self.path, self.each = path, each
        self.shape: tuple[int, ...] | None = None
        self.converter = VideoReformatter()  # shared, because setting one up takes longer than converting

    def __call__(self, frame: Any) -> np.ndarray:
        """Convert a decoded frame, or an array of upright RGB."""
        image = frame if isinstance(frame, np.ndarray) else _upright(frame, self.converter)
        if self.shape is None:
            self.shape = image.shape
            check_shape(image.shape[0], image.shape[1], self.path)
        if image.shape != self.shape:
            sizes = sorted((self.shape, image.shape))
            raise DecodeError("wrong size", self.path, f"the frame size changes within the video: {sizes}")
        return image if self.each is None else self.each(image)


@dataclass
class _Kept:
    """A frame that may be used: as decoded, or already converted to ``image``; ``time`` in seconds."""

    frame: Any
    image: np.ndarray | None
    time: float | None
    damaged: bool = False


def _read_video(path: Path, count: int, backend: Backend, convert: _Converter) -> Frames:
    packets = _inspect(path)
    found = None
    if packets.trusted and backend in _READERS:
        found = _read_indexed(path, count, packets, convert, _READERS[backend])
    elif packets.trusted and backend == "auto" and packets.shown >= _SEEK_PAYS_FRAMES:
        found = _read_seeking(path, count, packets, convert)
    if found is not None:
        return found
    return _read_sequential(path, count, packets.shown, convert)


def _read_sequential(path: Path, count: int, estimate: int, convert: _Converter) -> Frames:
    """Decode from the start and keep the wanted frames; a second pass only if ``estimate`` was wrong."""
    totals = {max(1, estimate - missing) for missing in range(4)}  # often 1 or 2 packets give no frame
    while True:
        wanted = {int(i) for total in totals for i in segment_middles(total, count)}
        kept, total, fps = _decode(path, wanted, convert)
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
        if kept[int(i)].damaged:
            raise _damaged_frame(path, int(i))
    return _frames([kept[int(i)] for i in indices], indices, total, fps, convert)


def _damaged_frame(path: Path, index: int) -> DecodeError:
    return DecodeError("unreadable", path, f"frame {index}, or one that it depends on, is damaged")


def _frames(
    chosen: list[_Kept], indices: np.ndarray, total: int, fps: float | None, convert: _Converter
) -> Frames:
    images = []
    for kept in chosen:
        if kept.image is None:
            kept.image, kept.frame = convert(kept.frame), None
        images.append(kept.image)
    return Frames(
        frames=np.stack(images),
        indices=indices,
        pts_seconds=np.array([np.nan if kept.time is None else kept.time for kept in chosen], np.float64),
        backend="pyav",
        total=total,
        fps=fps,
    )


def _decode(path: Path, wanted: set[int], convert: _Converter) -> tuple[dict[int, _Kept], int, float | None]:
    """Decode the file once. Returns the wanted frames by index, the number of frames, and fps."""
    kept: dict[int, _Kept] = {}
    total, tainted, held = 0, False, 0
    with open_video(path) as (container, stream):
        fps = float(stream.average_rate) if stream.average_rate else None
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                # some decoders report a lack of memory as bad data: raise MemoryError here if it is one
                np.empty(3 * stream.codec_context.width * stream.codec_context.height, np.uint8)
                if total == 0 and packet.size:  # a file cut in mid-group starts with undecodable packets
                    continue
                raise DecodeError(
                    "unreadable", path, f"decoding fails after frame {total}: {plain(error)}"
                ) from error
            for frame in decoded:
                tainted = frame.is_corrupt or (tainted and not frame.key_frame)
                if total in wanted:
                    held += 3 * frame.width * frame.height
                    # convert late, because most held frames are not used
                    image = None if held <= _MOST_HELD else convert(frame)
                    kept[total] = _Kept(frame if image is None else None, image, frame.time, tainted)
                total += 1
    return kept, total, fps


def _read_seeking(path: Path, count: int, packets: _Packets, convert: _Converter) -> Frames | None:
    """Seek to the keyframe before each wanted frame and decode up to its timestamp; None if that fails."""
    indices = segment_middles(packets.shown, count)
    wanted: dict[int, list[int]] = {}  # keyframe pts -> pts of the wanted frames after it, in order
    for i in indices:
        key = packets.keyframes[bisect_right(packets.keyframes, packets.pts[i]) - 1]
        wanted.setdefault(key, []).append(packets.pts[i])
    found: dict[int, _Kept] = {}
    with open_video(path) as (container, stream):
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
                    found[frame.pts] = _Kept(None, convert(frame), frame.time)
                if frame.pts == times[-1]:
                    break
    if any(packets.pts[i] not in found for i in indices):
        return None
    return _frames([found[packets.pts[i]] for i in indices], indices, packets.shown, fps, convert)


def _upright(frame: Any, converter: VideoReformatter) -> np.ndarray:
    """A decoded frame as RGB, uint8 [H, W, 3], rotated and mirrored by its display matrix."""
    image = converter.reformat(frame, format="rgb24").to_ndarray()
    matrix = _display_matrix(frame)
    if matrix is None:
        return image
    a, b, c, d = matrix  # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d of ISO 14496-12 (8.5.2), in units of 2^-16; None if the frame is shown unchanged."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return (a, b, c, d) if (b, c) != (0, 0) or min(a, d) < 0 else None


#: gives the frames of a file at some indices, RGB [T, H, W, 3], their times in seconds, and fps; None if its
#: frames are not as many as its packets
_Reader = Callable[[Path, _Packets, np.ndarray], tuple[np.ndarray, np.ndarray, float] | None]


def _read_indexed(
    path: Path, count: int, packets: _Packets, convert: _Converter, read: _Reader
) -> Frames | None:
    """Read frames by index; None if the decoder is missing, fails, or its frames do not match the packets."""
    indices = segment_middles(packets.shown, count)
    try:
        if not _suits_indexing(path) or (found := read(path, packets, indices)) is None:
            return None
    except (ImportError, OSError, RuntimeError, ValueError, IndexError):
        return None
    images, times, fps = found
    if not np.all(np.abs(times - packets.pts_seconds[indices]) <= 0.5 / max(fps, 1.0)):
        return None
    frames = np.stack([convert(image) for image in images])
    backend = read.__name__.removeprefix("_by_")
    return Frames(frames, indices, packets.pts_seconds[indices], backend, packets.shown, fps)


def _by_decord(
    path: Path, packets: _Packets, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float] | None:
    import decord

    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=1)  # a path, not a protocol
        fps, total = float(reader.get_avg_fps()), len(reader)
        if total != packets.shown:
            return None
        starts = np.asarray(reader.get_frame_timestamp(range(total)))[:, 0]
        if (starts < 0).any() or (np.abs(starts - packets.pts_seconds) > 0.5 / max(fps, 1.0)).any():
            return None
        return reader.get_batch(indices.tolist()).asnumpy(), starts[indices], fps
    except decord.DECORDError as error:
        raise RuntimeError(str(error)) from error


def _by_torchcodec(
    path: Path, packets: _Packets, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float] | None:
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(str(path.absolute()), num_ffmpeg_threads=1, dimension_order="NHWC")
    if len(reader) != packets.shown:
        return None
    found = reader.get_frames_at(indices.tolist())
    return found.data.numpy(), found.pts_seconds.numpy(), float(reader.metadata.average_fps or 25)


_READERS: dict[str, _Reader] = {"decord": _by_decord, "torchcodec": _by_torchcodec}


def check_backend(backend: Backend) -> None:
    """Raise :class:`ClipspmError` if a decoder that reads by index is not installed, or does not load."""
    if backend not in INDEXED:
        return
    if find_spec(backend) is None:
        raise ClipspmError(f"--decoder {backend} is not installed: {INDEXED[backend]}")
    try:
        import_module("torchcodec.decoders" if backend == "torchcodec" else backend)
    except Exception as error:
        reason = plain(error).split(". ")[0][:200]
        needs = " (it needs the shared libraries of FFmpeg)" if backend == "torchcodec" else ""
        raise ClipspmError(f"--decoder {backend} cannot be loaded{needs}: {reason}") from error


def _suits_indexing(path: Path) -> bool:
    """Whether there is one video stream, shown unrotated: others pick their own stream, or do not rotate."""
    with open_video(path) as (container, stream):
        shown = _first(container.decode(stream))
        return len(container.streams.video) == 1 and not any(map(_display_matrix, shown))


def _first(frames: Iterator[Any]) -> Iterator[Any]:
    for frame in frames:
        yield frame
        return


# ----------------------------------------------------------------------------------------------- images


def _image_files(path: Path) -> list[str]:
    """Names of a directory's images in natural order.

    Raises :class:`DecodeError` for links out of the directory and for anything but regular files.
    """
    names = []
    with os.scandir(path) as entries:
        for entry in entries:
            if not is_frame_name(entry.name):
                continue
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if not Path(target).is_relative_to(os.path.realpath(path)):
                    detail = f"a link out of its folder, to {target}: copy the file, or link the whole folder"
                    raise DecodeError("points elsewhere", path / entry.name, detail)
            if not entry.is_file():
                raise DecodeError("unreadable", path / entry.name, "not a regular file")
            names.append(entry.name)
    return sorted(names, key=natural_key)


def _read_images(path: Path, count: int, convert: _Converter) -> Frames:
    """Read ``count`` frames of a directory of images, in natural order of their names."""
    names = _image_files(path)
    if not names:
        raise DecodeError("no video stream", path, "the directory holds no images")
    indices = segment_middles(len(names), count)
    images = {i: convert(_read_image(path / names[i])) for i in sorted({int(i) for i in indices})}
    return Frames(
        frames=np.stack([images[int(i)] for i in indices]),
        indices=indices,
        pts_seconds=np.full(count, np.nan),
        backend="images",
        total=len(names),
        fps=None,
    )


def _read_image(path: Path) -> np.ndarray:
    """Read an image as upright RGB, uint8 [H, W, 3]."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            opened = Image.open(path, formats=_IMAGE_KINDS)
        with opened as image:
            check_shape(image.height, image.width, path)
            if image.mode.startswith(("I", "F")):
                detail = f"its pixels have more than 8 bits (mode {image.mode}): convert it to 8 bits"
                raise DecodeError("wrong format", path, detail)
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.DecompressionBombError as error:
        raise DecodeError("too large", path, plain(error)) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DecodeError("unreadable", path, plain(error)) from error
