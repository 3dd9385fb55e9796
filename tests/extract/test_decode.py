"""Every frame returned is the frame that a sequential decode puts at that index."""

import os
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipspm.extract import DecodeError, read_frames, segment_middles
from clipspm.extract.decode import natural_key
from tests.support.hostile_videos import textured
from tests.support.media import (
    cut_without_decoding,
    numbered_frames,
    rotate_mp4,
    sequential,
    write_video,
)

BFRAMES = {"bf": "2", "g": "24"}


@given(total=st.integers(1, 5000), count=st.integers(1, 64))
def test_segment_middles_lie_in_their_segments(total: int, count: int) -> None:
    indices = segment_middles(total, count)
    assert len(indices) == count
    for i, index in enumerate(indices):
        assert i * total <= (index + 1) * count and index * count <= (i + 1) * total
    assert (np.diff(indices) >= 0).all()
    assert 0 <= indices[0] <= indices[-1] < total
    # symmetric: the middle frames of the reversed clip are the reversed middle frames, up to one frame
    assert (np.abs((total - 1 - indices[::-1]) - indices) <= 1).all()


def test_known_indices() -> None:
    assert segment_middles(80, 8).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert segment_middles(2, 4).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("count", [1, 8, 16])
def test_real_clips_give_the_sequential_frames(shared_dir: Path, count: int) -> None:
    folder = shared_dir / "videos" / "torchvision_assets"
    clips = sorted(p for p in folder.iterdir() if p.suffix in (".avi", ".mp4"))
    assert len(clips) == 9
    backends = set()
    for clip in clips:
        reference, times = sequential(clip)
        for backend in ("auto", "decord"):
            found = read_frames(clip, count, backend=backend)  # type: ignore[arg-type]
            assert found.total == len(reference), clip.name
            np.testing.assert_array_equal(found.indices, segment_middles(len(reference), count))
            np.testing.assert_array_equal(found.frames, reference[found.indices], err_msg=clip.name)
            np.testing.assert_allclose(found.pts_seconds, times[found.indices], atol=1e-6)
            backends.add(found.backend)
    assert backends == {"pyav", "decord"}  # both ways are exercised


@pytest.mark.parametrize("name", ["kick", "handshake"])
def test_segments_with_a_delayed_first_frame(shared_dir: Path, name: str) -> None:
    for clip in sorted((shared_dir / "videos" / "ut_interaction" / name).iterdir())[:5]:
        reference, _ = sequential(clip)
        found = read_frames(clip, 8)
        np.testing.assert_array_equal(found.frames, reference[found.indices])


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mp4", "libx264", BFRAMES),
        (".mp4", "libx264", {"bf": "0"}),
        (".mkv", "libx264", {**BFRAMES, "x264-params": "open-gop=1"}),
        (".avi", "mpeg4", {"bf": "2"}),
        (".avi", "mpeg4", {"bf": "0"}),
        (".webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
        (".ts", "libx264", BFRAMES),
    ],
)
@pytest.mark.parametrize("count", [7, 100])
def test_made_clips_give_the_sequential_frames(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], count: int
) -> None:
    path = write_video(tmp_path / f"a{suffix}", numbered_frames(260), codec=codec, options=options)
    reference, _ = sequential(path)
    for backend in ("auto", "pyav", "decord"):
        found = read_frames(path, count, backend=backend)  # type: ignore[arg-type]
        assert found.total == len(reference)
        np.testing.assert_array_equal(found.frames, reference[found.indices])


def test_varying_frame_rate(tmp_path: Path) -> None:
    times = np.cumsum([20 + (i * 37) % 90 for i in range(250)]).tolist()
    path = write_video(tmp_path / "vfr.mp4", numbered_frames(250), options=BFRAMES, pts=times)
    reference, seconds = sequential(path)
    found = read_frames(path, 8)
    np.testing.assert_array_equal(found.frames, reference[found.indices])
    np.testing.assert_allclose(found.pts_seconds, seconds[found.indices], atol=1e-6)
    assert np.ptp(np.diff(seconds)) > 0.05  # it does vary


@pytest.mark.timeout(60)
@pytest.mark.parametrize("first", [5, 140, 290])
def test_an_edit_list_neither_hangs_nor_shifts_frames(tmp_path: Path, first: int) -> None:
    whole = write_video(tmp_path / "whole.mp4", numbered_frames(400), options={"bf": "2", "g": "300"})
    cut = cut_without_decoding(whole, tmp_path / "cut.mp4", first)
    reference, _ = sequential(cut)
    assert len(reference) < 400  # the edit list hides what lies before the cut
    found = read_frames(cut, 8, backend="decord")
    assert found.backend == "pyav"  # its index is not trusted
    np.testing.assert_array_equal(found.frames, reference[found.indices])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_upright(tmp_path: Path, degrees: int) -> None:
    frames = numbered_frames(300)
    path = write_video(tmp_path / "phone.mp4", frames)
    plain = read_frames(path, 4).frames
    rotate_mp4(path, degrees)
    found = read_frames(path, 4, backend="decord").frames
    np.testing.assert_array_equal(found, np.rot90(plain, -degrees // 90, axes=(1, 2)))


def test_one_frame_is_repeated(tmp_path: Path) -> None:
    found = read_frames(write_video(tmp_path / "one.mp4", numbered_frames(1)), 8)
    assert found.total == 1
    assert found.indices.tolist() == [0] * 8
    assert (found.frames == found.frames[0]).all()


def test_min_frames_refuses_short_videos(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mp4", numbered_frames(3))
    with pytest.raises(DecodeError, match="3 frames, at least 8") as caught:
        read_frames(path, 8, min_frames=8)
    assert caught.value.category == "too short"


def test_a_directory_of_frames_in_natural_order(tmp_path: Path) -> None:
    for i in range(12):
        image = np.full((20, 30, 3), i * 10, np.uint8)
        Image.fromarray(image).save(tmp_path / f"frame_{i}.png")
    found = read_frames(tmp_path, 12)
    assert found.backend == "images"
    assert found.frames[:, 0, 0, 0].tolist() == [i * 10 for i in range(12)]
    assert np.isnan(found.pts_seconds).all()


@given(st.lists(st.text("ab019_", max_size=6), unique=True))
def test_natural_order_is_total(names: list[str]) -> None:
    ordered = sorted(names, key=natural_key)
    backwards = names[::-1]
    assert sorted(backwards, key=natural_key) == ordered
    assert sorted(["f10", "f9", "f1"], key=natural_key) == ["f1", "f9", "f10"]


def _audio_only(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))


@pytest.mark.parametrize(
    ("name", "content", "category"),
    [
        ("empty.mp4", b"", "unreadable"),
        ("text.avi", b"this is not a video\n" * 50, "unreadable"),
        ("noise.mp4", bytes(range(256)) * 40, "unreadable"),
        ("audio.mp4", _audio_only, "wrong format"),
        ("missing.mp4", None, "missing"),
    ],
)
def test_hostile_files_are_named_for_what_they_are(tmp_path: Path, name: str, content, category: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DecodeError) as caught:
        read_frames(path, 8)
    assert caught.value.category == category
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".avi", "mpeg4")])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, codec: str, keep: float) -> None:
    path = write_video(tmp_path / f"cut{suffix}", numbered_frames(120), codec=codec)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    try:
        found = read_frames(path, 8)
    except DecodeError as error:
        assert error.category == "unreadable"
    else:  # only the container's tail is missing: what is there must still be right
        assert keep > 0.9 and found.total >= 0.9 * 120
        np.testing.assert_array_equal(found.frames, sequential(path)[0][found.indices])


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("suffix", "codec"), [(".webm", "libvpx"), (".mkv", "libx264"), (".mp4", "libx264")])
def test_files_that_state_their_size_are_refused_when_cut_anywhere(
    tmp_path: Path, suffix: str, codec: str, keep: float
) -> None:
    path = write_video(tmp_path / f"cut{suffix}", numbered_frames(60), codec=codec)
    assert read_frames(path, 4).total == 60
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DecodeError, match="truncated|Invalid data") as caught:
        read_frames(path, 4)
    assert caught.value.category == "unreadable"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_metadata_need_not_be_utf8(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"plain{suffix}", numbered_frames(20))
    named = tmp_path / f"named{suffix}"
    with av.open(str(path)) as reader, av.open(str(named), "w") as writer:
        stream = reader.streams.video[0]
        out = writer.add_stream_from_template(stream)
        writer.metadata["title"] = "TITLE OF IT"
        for packet in reader.demux(stream):
            if packet.size:
                packet.stream = out
                writer.mux(packet)
    data = named.read_bytes()
    assert b"TITLE OF IT" in data
    named.write_bytes(data.replace(b"TITLE OF IT", b"T\xfcTL\xe9 \xff\xfe IT"))
    np.testing.assert_array_equal(read_frames(named, 4).frames, read_frames(path, 4).frames)


def reported_damage(path: Path) -> set[int] | None:
    """Frames that the decoder reports as damaged, or that follow one before the next keyframe; None: it fails."""
    found, tainted = set(), False
    try:
        with av.open(str(path)) as container:
            for i, frame in enumerate(container.decode(video=0)):
                tainted = frame.is_corrupt or (tainted and not frame.key_frame)
                if tainted:
                    found.add(i)
    except av.FFmpegError:
        return None
    return found


@pytest.mark.parametrize("frames", [60, 400])  # from the start; seeking
def test_a_frame_that_is_reported_damaged_is_refused(tmp_path: Path, frames: int) -> None:
    whole = write_video(tmp_path / "whole.mp4", textured(frames), options={"g": "50"})
    wanted = set(read_frames(whole, 8).indices.tolist())
    data, rng = whole.read_bytes(), np.random.default_rng(0)
    refused = kept = 0
    for number in range(24):
        hurt = bytearray(data)
        start, size = int(len(data) * (0.05 + 0.035 * number)), (20, 2000)[number % 2]
        hurt[start : start + size] = rng.bytes(size)
        path = tmp_path / "hurt.mp4"
        path.write_bytes(bytes(hurt))
        damaged = reported_damage(path)
        try:
            found = read_frames(path, 8)
        except DecodeError as error:
            assert error.category == "unreadable" and damaged != set()
            refused += 1
        else:
            assert not damaged or not damaged & wanted
            kept += 1
            if damaged is not None:
                np.testing.assert_array_equal(found.frames, sequential(path)[0][found.indices])
    assert refused >= 5 and kept >= 2


def test_special_files_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    for name in ("pipe.mp4", "loop.mp4"):
        with pytest.raises(DecodeError):
            read_frames(tmp_path / name)


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(DecodeError("too short", Path("a.mp4"), "3 frames")))
    assert (error.category, error.path, error.detail) == ("too short", Path("a.mp4"), "3 frames")
