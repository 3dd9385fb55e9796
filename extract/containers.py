"""Open video files, and refuse those that are truncated, too large, or refer to other files.

The format is recognised by content, not by name. Formats that refer to other files, such as playlists, are
not accepted, and only the file itself is ever opened. If a format states the size of the file, a shorter
file is refused.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL
from pathlib import Path
from typing import Any, BinaryIO

import av
from av import logging
from av.error import FFmpegError
from av.stream import Disposition

from clipspm.extract.failures import DecodeError

#: the accepted formats: FFmpeg's names and the common ones
ACCEPTED = {
    "mov,mp4,m4a,3gp,3g2,mj2": "MP4/MOV",
    "matroska,webm": "Matroska/WebM",
    "avi": "AVI",
    "mpegts": "MPEG-TS",
    "mpeg": "MPEG-PS",
    "mpegvideo,m4v,h264,hevc": "raw MPEG video",
    "asf": "ASF/WMV",
    "flv": "FLV",
    "ogg": "Ogg",
    "ivf": "IVF",
    "gif": "GIF",
    "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe": "single images",
}

#: the most pixels of a frame: 8192 x 8192
MOST_PIXELS = 2**26
#: the largest ratio of a frame's long to its short side
MOST_OBLONG = 64

_OPTIONS = {
    "format_whitelist": ",".join(ACCEPTED),
    "protocol_whitelist": "file",
    "enable_drefs": "0",
}
#: accept metadata that is not UTF-8; PyAV from 19 on does so anyway and has no such argument
LENIENT: dict[str, Any] = (
    {"metadata_errors": "replace"} if hasattr(av.container.Container, "metadata_errors") else {}
)


@contextmanager
def open_video(path: Path, **options: str) -> Iterator[tuple[Any, Any]]:
    """Open a video with FFmpeg's ``options``; yields the container and its main video stream.

    Raises :class:`DecodeError`.
    """
    try:
        # "file:" because FFmpeg takes a colon in a name for a protocol; container options only, because
        # PyAV 15 crashes with stream options where streams turn up late
        container = av.open(f"file:{path}", container_options={**_OPTIONS, **options}, **LENIENT)
    except FFmpegError as error:
        found = _rejected_format(path) if error.errno == EINVAL else None
        if found is None:
            raise
        detail = f"its format is {found!r}, accepted are {', '.join(ACCEPTED.values())}"
        raise DecodeError("wrong format", path, detail) from None
    with container:
        stream = _main_stream(container, path)
        if stream.codec_context is None:
            raise DecodeError("unreadable", path, "no decoder for its video codec")
        check_shape(stream.codec_context.height, stream.codec_context.width, path)
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # the header can be wrong
        stream.codec_context.thread_count = 1  # many workers are faster than many threads
        yield container, stream


#: video streams that are not the video itself: covers and thumbnails
_NOT_MAIN = Disposition.attached_pic | Disposition.timed_thumbnails


def _main_stream(container: Any, path: Path) -> Any:
    """The stream that a player shows: the default one, else the first; raises :class:`DecodeError`."""
    found = [stream for stream in container.streams.video if not stream.disposition & _NOT_MAIN]
    if not found:
        raise DecodeError("no video stream", path, "the file holds no video")
    return next((stream for stream in found if stream.disposition & Disposition.default), found[0])


def check_shape(height: int, width: int, path: Path) -> None:
    """Raise :class:`DecodeError` for frames that need too much memory, as they are or once resized."""
    if height * width > MOST_PIXELS:
        most = f"at most {MOST_PIXELS / 1e6:.0f} million are decoded"
        raise DecodeError("too large", path, f"frames of {width}x{height} pixels, {most}")
    if max(height, width) > MOST_OBLONG * max(1, min(height, width)):
        most = f"the long side may be at most {MOST_OBLONG} times the short one"
        raise DecodeError("wrong size", path, f"frames of {width}x{height} pixels, {most}")


def _rejected_format(path: Path) -> str | None:
    """FFmpeg's name of a format that is not accepted, from its log; None if the format is not the problem."""
    level = logging.get_level()
    logging.set_level(logging.DEBUG)
    try:
        with logging.Capture() as lines, suppress(FFmpegError):
            av.open(f"file:{path}", container_options=_OPTIONS, **LENIENT).close()
    finally:
        logging.set_level(level)
    said = "".join(line for _, _, line in lines)
    if "not on whitelist" not in said:
        return None
    probed = re.search(r"Format (\S+) probed", said)
    return probed[1] if probed else "unknown"


# ------------------------------------------------------------------------------------------------ sizes


def check_whole(path: Path) -> bool:
    """Raise :class:`DecodeError` if a file is shorter than its headers say or its frames are elsewhere.

    Returns whether the headers state where the file ends; if not, its length is not checked. Covers MP4 and
    MOV (ISO 14496-12), Matroska (RFC 8794), AVI, ASF, FLV, GIF, IVF, Ogg (RFC 3533), and MPEG program and
    transport streams by their packets.
    """
    with path.open("rb") as file:
        there = file.seek(0, 2)
        file.seek(0)
        head = file.read(4096)
        if _is_mp4(head) and (other := _pictures_elsewhere(file, there)) is not None:
            raise DecodeError("points elsewhere", path, f"its frames are in another file, {other}")
        end = next((find(file, there, head) for known, find in _ENDS if known(head)), 0)
    if end > there:
        raise DecodeError("unreadable", path, f"truncated: {there} bytes, its headers say {end}")
    return end > 0


def _read_at(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _is_mp4(head: bytes) -> bool:
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp")


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the content, stated end) of each MP4 box between ``at`` and ``end``."""
    while at + 8 <= end:
        head = _read_at(file, at, 16)
        size, name, start = int.from_bytes(head[:4], "big"), head[4:8], at + 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), at + 16
        # size 0: the box goes up to the end of the file; smaller sizes and other names: not a box
        if size < start - at or not name.replace(b" ", b"").isalnum():
            return
        at += size
        yield name, start, at


def _end_of_boxes(file: BinaryIO, there: int, head: bytes) -> int:
    """Where the last box ends; 0 if it has size 0, which means up to the end of the file."""
    last = max((end for *_, end in _boxes(file, 0, there)), default=0)
    counted = [_end_of_fragments(file, box) for box in _boxes(file, 0, there) if box[0] == b"sidx"]
    last = max([last, *counted])
    return 0 if _read_at(file, last, 8) == bytes(4) + b"mdat" else last


def _end_of_fragments(file: BinaryIO, box: tuple[bytes, int, int]) -> int:
    """Where the fragments listed in a ``sidx`` box end (ISO 14496-12, 8.16.3); 0 if it lists indices."""
    _, start, end = box
    head = _read_at(file, start, 32)
    long = head[0] == 1
    counted = 32 if long else 24
    offset = int.from_bytes(head[20:28], "big") if long else int.from_bytes(head[16:20], "big")
    count = int.from_bytes(_read_at(file, start + counted - 2, 2), "big")
    table = _read_at(file, start + counted, 12 * count)
    sizes = [int.from_bytes(table[i : i + 4], "big") for i in range(0, len(table) - 11, 12)]
    return 0 if any(size >> 31 for size in sizes) else end + offset + sum(sizes)


def _pictures_elsewhere(file: BinaryIO, there: int) -> str | None:
    """The data reference of a track whose samples are in another file; None if there is none."""
    found = [(0, there)]
    for wanted in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        found = [
            (start, min(end, there))
            for outer in found
            for name, start, end in _boxes(file, *outer)
            if name == wanted
        ]
    for start, end in found:
        for name, inner, stop in _boxes(file, start + 8, end):
            data = _read_at(file, inner, min(stop - inner, 1024))
            if len(data) > 4 and not data[3] & 1 and data[4:].strip(b"\0"):
                said = b" ".join(re.findall(rb"[ -~]{4,}", data[4:]))[:200]
                return f"{name.decode('ascii', 'replace').strip()}: {said.decode('ascii')}"
    return None


def _end_of_matroska(file: BinaryIO, there: int, head: bytes) -> int:
    size, start = _ebml_size(head, 4)
    start += size or 0
    if head[start : start + 4] != b"\x18\x53\x80\x67":
        return 0
    size, start = _ebml_size(head, start + 4)
    return start + (size or 0)


def _end_of_gif(file: BinaryIO, there: int, head: bytes) -> int:
    """Follow the blocks, whose sub-blocks state their length."""
    at = 13 + _palette_bytes(head[10])
    while at < there:
        block = _read_at(file, at, 10)
        if block[0] == 0x3B:
            return at + 1
        if block[0] == 0x2C:
            at += 11 + (_palette_bytes(block[9]) if len(block) == 10 else 0)
        elif block[0] == 0x21:
            at += 2
        else:
            return 0
        while size := (_read_at(file, at, 1) or b"\1")[0]:
            at += 1 + size
            if at >= there:
                return at + 1  # plus the terminator of the block
        at += 1
    return at


def _palette_bytes(flags: int) -> int:
    """Bytes of the colour table that ``flags`` announce; 0 without one."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_ivf(file: BinaryIO, there: int, head: bytes) -> int:
    at = int.from_bytes(head[6:8], "little")
    while at < there and len(frame := _read_at(file, at, 12)) == 12:
        at += 12 + int.from_bytes(frame[:4], "little")
    return at if at >= there else at + 12


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """The EBML size at ``at`` (None: unknown, as in live streams), and where its content begins."""
    length = 9 - data[at].bit_length() if at < len(data) and data[at] else 0
    if not length or at + length > len(data):
        return None, at
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length


def _end_of_avi(file: BinaryIO, there: int, head: bytes) -> int:
    """Follow the RIFF chunks: files above 1 GB have several. 0 for live streams, which state no size."""
    at = 0
    while (head := _read_at(file, at, 12))[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"):
        size = int.from_bytes(head[4:8], "little")
        if not 4 <= size < 0x7FFFF000:
            return 0
        at += 8 + size + size % 2
    return at - 9  # tolerance: some writers count the chunk's header, or leave out the padding


_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def _end_of_asf(file: BinaryIO, there: int, head: bytes) -> int:
    """Follow header, data and index objects by their sizes; the data size of a broadcast is unknown."""
    at = 0
    while at + 24 <= there:
        head = _read_at(file, at, 24)
        size = int.from_bytes(head[16:24], "little")
        if size < 24 or (head[:16] == _ASF_DATA and size <= 50):
            return at
        at += size
        if head[:16] == _ASF_DATA:
            return at
    return at


def _end_of_flv(file: BinaryIO, there: int, head: bytes) -> int:
    at = int.from_bytes(head[5:9], "big") + 4
    while tag := _read_at(file, at, 11):
        if tag[0] & 0x1F not in (8, 9, 18):
            return 0
        at += 11 + int.from_bytes(tag[1:4], "big") + 4
    return at - 4  # the trailing size of the last tag may be missing


def _end_of_ogg(file: BinaryIO, there: int, head: bytes) -> int:
    """Follow the pages; the last one must be marked as the end of its stream."""
    at, last = 0, 0
    while (page := _read_at(file, at, 27 + 255))[:4] == b"OggS" and len(page) >= 27:
        last = page[5]
        at += 27 + page[26] + sum(page[27 : 27 + page[26]])
    if at < there:
        return at + 27 if page[:4] == b"OggS" else 0
    return at if at > there or last & 4 else at + 27


def _end_of_mpeg(file: BinaryIO, there: int, head: bytes) -> int:
    """Follow packs, system headers and packets, which state their length."""
    at = 0
    while at + 6 <= there:
        head = _read_at(file, at, 14)
        if head[:3] != b"\0\0\1":
            return 0
        if head[3] == 0xB9:
            at += 4
        elif head[3] == 0xBA and head[4] >> 6 == 1:
            at += 14 + (head[13] & 7 if len(head) == 14 else 0)
        elif head[3] == 0xBA:
            at += 12
        elif head[3] >= 0xBB and (size := int.from_bytes(head[4:6], "big")):
            at += 6 + size
        else:
            return 0
    return at


def _transport_packets(head: bytes) -> tuple[int, int] | None:
    """(packet size, offset of the sync byte) of a transport stream; None if it is not one."""
    for size, offset in ((188, 0), (192, 4), (204, 0)):
        sync = head[offset : 20 * size : size]
        if len(sync) >= 3 and sync == b"\x47" * len(sync):
            return size, offset
    return None


def _end_of_transport(file: BinaryIO, there: int, head: bytes) -> int:
    known = _transport_packets(head)
    assert known is not None
    size, offset = known
    whole = there // size * size
    rest = _read_at(file, whole, offset + 1)
    return whole + size if rest and rest[offset:] in (b"", b"\x47") else 0


#: how a format is recognised, and where a file of it ends by its headers (0: unknown)
_ENDS: tuple[tuple[Callable[[bytes], Any], Callable[[BinaryIO, int, bytes], int]], ...] = (
    (_is_mp4, _end_of_boxes),
    (lambda head: head.startswith(b"\x1a\x45\xdf\xa3"), _end_of_matroska),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ", _end_of_avi),
    (lambda head: head.startswith(bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")), _end_of_asf),
    (lambda head: head.startswith(b"FLV"), _end_of_flv),
    (lambda head: head.startswith((b"GIF87a", b"GIF89a")), _end_of_gif),
    (lambda head: head.startswith(b"DKIF"), _end_of_ivf),
    (lambda head: head.startswith(b"OggS"), _end_of_ogg),
    (lambda head: head.startswith(b"\0\0\1\xba"), _end_of_mpeg),
    (_transport_packets, _end_of_transport),
)
