"""A file is opened for what it is, alone and whole."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from clipspm.extract import DecodeError, read_frames
from clipspm.extract.decode import count_frames
from tests.support.hostile_videos import png_of, textured, write_audio
from tests.support.media import (
    add_cover,
    hide_start,
    numbered_frames,
    refer_to,
    sequential,
    show_mp4,
    write_video,
)

IN_OPEN = 0x20


@contextmanager
def opened(path: Path) -> Iterator[list[bool]]:
    """Whether anyone opens ``path`` meanwhile, as the kernel says."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        pytest.skip("needs inotify")
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert watch >= 0 and libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) >= 0
    seen: list[bool] = []
    try:
        yield seen
        try:
            seen.append(bool(os.read(watch, 4096)))
        except BlockingIOError:
            seen.append(False)
    finally:
        os.close(watch)


def refusal(path: Path, **options: object) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        read_frames(path, 4, **options)  # type: ignore[arg-type]
    with pytest.raises(DecodeError) as counted:
        count_frames(path)
    assert counted.value.category == caught.value.category
    return caught.value


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
def test_a_list_of_files_is_no_video_and_they_are_not_opened(tmp_path: Path, backend: str) -> None:
    clip = write_video(tmp_path / "clip.mp4", numbered_frames(10))
    text = tmp_path / "other.mp4"
    text.write_text("ffconcat version 1.0\nfile clip.mp4\n")
    with opened(clip) as noticed, av.open(str(text)) as container:
        assert container.format.name == "concat"
    assert noticed == [True]  # what an unrestricted reader does
    with opened(clip) as noticed:
        error = refusal(text, backend=backend)
    assert noticed == [False]
    assert error.category == "wrong format"
    assert "its format is 'concat', accepted are MP4/MOV, Matroska/WebM, AVI" in error.detail


@pytest.mark.parametrize(
    ("kind", "content"), [(b"url ", b"clip.mp4\0"), (b"alis", b"\0" * 90 + b"clip.mp4" + b"\0" * 90)]
)
def test_a_movie_whose_pictures_are_in_another_file(tmp_path: Path, kind: bytes, content: bytes) -> None:
    clip = write_video(tmp_path / "clip.mp4", numbered_frames(10))
    path = refer_to(write_video(tmp_path / "other.mov", numbered_frames(10)), kind, content)
    with opened(clip) as noticed:
        error = refusal(path)
    assert noticed == [False]
    assert error.category == "points elsewhere" and "clip.mp4" in error.detail
    refer_to(clip, b"url ", b"\0")  # says nothing: some writers forget the mark for "in this file"
    assert read_frames(clip, 4).total == 10


@pytest.mark.parametrize(
    "name",
    ["%03d.mp4", "concat:a|b.mp4", "file:a.mp4", "subfile,,start,0,,:a.mp4", b"\xff\xe4 %d.mp4", "-.mp4"],
)
def test_no_name_is_a_pattern_or_a_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | bytes
) -> None:
    source = write_video(tmp_path / "source.mp4", numbered_frames(10))
    monkeypatch.chdir(tmp_path)
    relative = Path(os.fsdecode(name))
    source.rename(relative)
    for backend in ("auto", "decord"):
        assert read_frames(relative, 4, backend=backend).total == 10  # type: ignore[arg-type]
    assert read_frames(tmp_path / relative, 4).total == 10


# ------------------------------------------------------------------------------------------- cut or not


@pytest.mark.parametrize("options", [{"g": "25", "bf": "0"}, {"g": "10", "bf": "2"}, {"g": "250", "bf": "2"}])
@pytest.mark.parametrize("hidden", [0.6, 1.0, 2.0])
def test_an_edit_list_may_hide_the_start(tmp_path: Path, options: dict[str, str], hidden: float) -> None:
    path = hide_start(write_video(tmp_path / "late.mp4", numbered_frames(75), options=options), hidden)
    reference, times = sequential(path)
    assert len(reference) == 75 - round(25 * hidden)
    found = read_frames(path, 8)
    assert found.total == len(reference)
    np.testing.assert_array_equal(found.frames, reference[found.indices])
    np.testing.assert_allclose(found.pts_seconds, times[found.indices])


@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_where_no_size_is_stated_the_number_of_frames_tells_a_cut(tmp_path: Path, hidden: float) -> None:
    """Index first, and pictures up to the end of the file."""
    options = {"g": "25", "bf": "0"}
    path = hide_start(write_video(tmp_path / "a.mp4", numbered_frames(75), options=options), hidden)
    data = path.read_bytes()
    start = data.index(b"mdat") - 4
    open_ended = tmp_path / "b.mp4"
    size = struct.unpack_from(">I", data, start)[0]
    moved = bytearray(data[:start] + data[start + size :])  # its index comes first: places of pictures change
    offsets = moved.index(b"stco") + 12
    count = struct.unpack_from(">I", moved, offsets - 4)[0]
    for i in range(count):
        (place,) = struct.unpack_from(">I", moved, offsets + 4 * i)
        struct.pack_into(">I", moved, offsets + 4 * i, place + len(data) - start - size)
    whole = bytes(moved) + b"\0\0\0\0mdat" + data[start + 8 : start + size]
    open_ended.write_bytes(whole)
    np.testing.assert_array_equal(read_frames(open_ended, 4).frames, read_frames(path, 4).frames)
    open_ended.write_bytes(whole[: int(len(whole) * 0.7)])
    assert refusal(open_ended).category == "unreadable"


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".ts", "libx264"),
        (".m2ts", "mpeg2video"),
        (".mpg", "mpeg2video"),
        (".mpg", "mpeg1video"),
        (".avi", "mpeg4"),
        (".wmv", "wmv2"),
        (".flv", "flv"),
        (".ogv", "libvpx"),
        (".mov", "libx264"),
    ],
)
def test_files_are_refused_when_cut_and_read_when_whole(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write_video(tmp_path / f"a{suffix}", textured(40), codec=codec)
    reference, _ = sequential(path)
    found = read_frames(path, 8)
    np.testing.assert_array_equal(found.frames, reference[found.indices])
    whole = path.read_bytes()
    units = {".ts": 188, ".m2ts": 192}
    boundaries = 0
    for length in np.linspace(0.3 * len(whole), 0.97 * len(whole), 40).astype(int):
        path.write_bytes(whole[:length])
        try:
            read_frames(path, 4)
        except DecodeError as error:
            assert error.category == "unreadable"
        else:
            boundaries += 1
            assert length % units.get(suffix, length + 1) == 0 or suffix == ".flv"
    assert boundaries <= 2  # cut between two packets: a whole file to every reader


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".ts", "libx264"), (".mpg", "mpeg2video"), (".mp4", "libx264")]
)
def test_what_follows_the_end_does_no_harm(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write_video(tmp_path / f"a{suffix}", textured(20), codec=codec)
    expected = read_frames(path, 4).frames
    for more in (b"\0" * 100, b"\xff" * 51, b"TAG" + b" " * 125):
        padded = tmp_path / f"b{suffix}"
        padded.write_bytes(path.read_bytes() + more)
        np.testing.assert_array_equal(read_frames(padded, 4).frames, expected)


# ------------------------------------------------------------------------------------------------ sizes


def test_what_would_take_too_much_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", textured(5), codec="ffv1")
    data = bytearray(path.read_bytes())
    struct.pack_into("<ii", data, data.index(b"strf") + 12, 12000, 12000)
    path.write_bytes(bytes(data))
    error = refusal(path)
    assert error.category == "too large" and "12000x12000 pixels, at most 67 million" in error.detail
    long = write_video(tmp_path / "a.mkv", textured(5, 4, 600), codec="ffv1")
    assert refusal(long).category == "wrong size"


def test_frames_of_folders_are_files_of_the_folder_and_images(tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        for i, image in enumerate(textured(4)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
        return tmp_path / name

    clip = folder("clip")
    (folder("inside") / "4.png").symlink_to("3.png")
    assert read_frames(tmp_path / "inside", 5).total == count_frames(tmp_path / "inside") == 5
    (tmp_path / "linked").symlink_to(clip)
    np.testing.assert_array_equal(read_frames(tmp_path / "linked", 4).frames, read_frames(clip, 4).frames)
    (folder("outside") / "4.png").symlink_to(clip / "0.png")
    with opened(clip / "0.png") as noticed:
        error = refusal(tmp_path / "outside")
    assert noticed == [False] and error.category == "points elsewhere"
    os.mkfifo(folder("pipe") / "4.png")
    assert refusal(tmp_path / "pipe").detail == "not a regular file"
    for name, data, category in (
        ("large", png_of(30000), "too large"),
        ("larger", png_of(9000), "too large"),
        ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n", "unreadable"),
    ):
        (folder(name) / "0.png").write_bytes(data)
        with pytest.raises(DecodeError) as caught:
            read_frames(tmp_path / name, 4)
        assert caught.value.category == category


def _png(tmp_path: Path) -> bytes:
    Image.new("RGB", (64, 64), (200, 200, 200)).save(tmp_path / "cover.png")
    return (tmp_path / "cover.png").read_bytes()


def test_a_cover_is_not_taken_for_the_film(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4", numbered_frames(20))
    wanted = read_frames(film, 4)
    covered = add_cover(write_video(tmp_path / "covered.mp4", numbered_frames(20)), _png(tmp_path))
    with av.open(str(covered)) as container:
        assert container.streams.video[0].codec_context.name == "png"
    for backend in ("auto", "pyav", "decord"):
        found = read_frames(covered, 4, backend=backend)  # type: ignore[arg-type]
        assert found.total == wanted.total == 20
        np.testing.assert_array_equal(found.frames, wanted.frames)


def test_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    path = add_cover(write_audio(tmp_path / "song.mp4", "aac"), _png(tmp_path))
    with pytest.raises(DecodeError) as caught:
        read_frames(path)
    assert caught.value.category == "no video stream"


def test_the_default_stream_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        streams[0].disposition, streams[1].disposition = 0, Disposition.default.value
        for number, stream in enumerate(streams):
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for image in numbered_frames(5 if number == 0 else 30, 64, 64):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    for backend in ("auto", "pyav", "decord"):
        assert read_frames(path, 4, backend=backend).total == 30  # type: ignore[arg-type]


def test_pictures_that_go_on_to_the_end_of_the_file_are_cut_off(tmp_path: Path) -> None:
    """A box of size 0 says nothing of its length; how many frames there are is said elsewhere."""
    options = {"movflags": "+faststart"}
    path = tmp_path / "open.mp4"
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for image in textured(40, 64, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    at = data.index(b"mdat") - 4
    data = data[:at] + bytes(4) + data[at + 4 :]
    path.write_bytes(data)
    assert read_frames(path, 4).total == 40
    for share in (0.3, 0.5, 0.7, 0.85):
        path.write_bytes(data[: at + int(share * (len(data) - at))])
        with pytest.raises(DecodeError):
            read_frames(path, 4)


@pytest.mark.parametrize(
    "matrix",
    [
        (i, 0, 0, j) if straight else (0, i, j, 0)
        for i in (1, -1)
        for j in (1, -1)
        for straight in (True, False)
    ],
)
def test_frames_are_as_a_viewer_shows_them(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """All eight ways that a display matrix can turn and mirror; the slow reference moves pixel by pixel."""
    path = write_video(tmp_path / "v.mp4", textured(8, 32, 48))
    plain = read_frames(path, 2).frames
    show_mp4(path, matrix)
    a, b, c, d = matrix
    height, width = plain.shape[1:3]
    shown = np.zeros((2, *((width, height) if b else (height, width)), 3), np.uint8)
    for y in range(height):
        for x in range(width):
            shown[:, b * x + d * y - (b + d < 0), a * x + c * y - (a + c < 0)] = plain[:, y, x]
    for backend in ("auto", "pyav", "decord"):
        np.testing.assert_array_equal(read_frames(path, 2, backend=backend).frames, shown)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_images_of_more_than_8_bits_are_refused(tmp_path: Path, mode: str, dtype: type) -> None:
    """Which of their values are black and white is not written in them."""
    image = Image.fromarray(np.arange(64 * 64).reshape(64, 64).astype(dtype))
    assert image.mode == mode
    for i in range(3):
        image.save(tmp_path / f"{i}.png", format="TIFF")
    with pytest.raises(DecodeError, match=f"more than 8 bits .mode {mode}") as caught:
        read_frames(tmp_path, 2)
    assert caught.value.category == "wrong format"


def cut(data: bytes, path: Path, shares: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)) -> Iterator[Path]:
    """``path`` with the first part of ``data``, of several lengths, never just between two blocks."""
    for share in shares:
        path.write_bytes(data[: int(share * len(data))])
        yield path


def test_a_gif_that_ends_within_a_picture_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "v.gif"
    images = [Image.fromarray(image) for image in textured(12, 40, 40)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40)
    data = path.read_bytes()
    assert read_frames(path, 4).total == 12
    path.write_bytes(data + bytes(7))  # what follows the end is not read
    assert read_frames(path, 4).total == 12
    for part in cut(data, path):
        with pytest.raises(DecodeError, match="truncated"):
            read_frames(part, 4)


def test_an_ivf_that_ends_within_a_frame_is_cut_off(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.ivf", textured(30, 64, 64), codec="libvpx")
    data = path.read_bytes()
    assert read_frames(path, 4).total == 30
    for part in cut(data, path):
        with pytest.raises(DecodeError, match="truncated"):
            read_frames(part, 4)


def test_fragments_that_an_index_counts_have_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(
        str(path), "w", options={"movflags": "+dash+frag_keyframe+delay_moov+global_sidx"}
    ) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "10", "bf": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for image in textured(40, 64, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert b"sidx" in data
    assert read_frames(path, 4).total == 40
    starts = [i - 4 for i in range(len(data)) if data.startswith(b"moof", i)]
    for start in starts[1:]:  # clean cuts
        path.write_bytes(data[:start])
        with pytest.raises(DecodeError, match="truncated"):
            read_frames(path, 4)
