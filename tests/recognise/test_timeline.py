"""What happens when: windows and beats beside plain loops, known joins found, and files that players read."""

import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from clipspm import FewShotRecognizer
from clipspm.errors import UsageError
from clipspm.extract.failures import DecodeError
from clipspm.recognise import timeline_files as files
from clipspm.recognise.timeline import (
    Segment,
    Timeline,
    _by_beat,
    _joined,
    _likeliest,
    _runs,
    _windows,
    timeline,
)
from tests.recognise.conftest import picture
from tests.support.media import write_video


def test_joined_clips_come_apart_where_they_were_joined(
    recognizer: FewShotRecognizer, tmp_path: Path
) -> None:
    """Three clips of two seconds each, at eight frames a second."""
    frames = np.concatenate([picture(name, 7) for name in ("dusk", "grow", "dawn")])
    video = write_video(tmp_path / "long.mp4", frames, fps=8)
    found = timeline(recognizer, video, window=2.0, stride=0.5)
    assert [segment.label for segment in found.segments] == ["dusk", "grow", "dawn"]
    ends = [segment.end for segment in found.segments]
    np.testing.assert_allclose(ends, [2, 4, 6], atol=0.51)
    assert found.segments[0].start == 0
    assert [s.start for s in found.segments[1:]] == ends[:-1]
    np.testing.assert_allclose(found.beats.sum(1), 1)


def test_a_video_shorter_than_a_window_is_one_segment(recognizer: FewShotRecognizer, tmp_path: Path) -> None:
    video = write_video(tmp_path / "short.mp4", picture("grow", 7, count=4), fps=8)
    (segment,) = timeline(recognizer, video, window=2.0, stride=0.5).segments
    assert (segment.start, segment.end) == (0, 0.5)


def test_a_folder_of_frames_has_no_times(recognizer: FewShotRecognizer, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="has no times"):
        timeline(recognizer, tmp_path)


@pytest.mark.parametrize("stride", [0.0, -1.0, 2.5])
def test_a_stride_past_the_window_is_refused(recognizer: FewShotRecognizer, stride: float) -> None:
    with pytest.raises(UsageError, match="at most the window"):
        timeline(recognizer, "a.mp4", window=2.0, stride=stride)


@pytest.mark.parametrize(("count", "every"), [(4, 1), (5, 2), (9, 2), (10, 4), (23, 3)])
def test_windows_and_beats_are_those_of_a_plain_loop(count: int, every: int) -> None:
    frames, rng = 4, np.random.default_rng(count)
    starts = sorted({*range(0, count - frames + 1, every), count - frames})
    features = np.arange(count, dtype=np.float32)[:, None]
    windows = _windows(features, frames, every)
    assert windows[:, :, 0].tolist() == [list(range(s, s + frames)) for s in starts]
    values = rng.random((len(starts), 2))
    beats = _by_beat(values, frames, every, count)
    for k, begin in enumerate(range(0, count, every)):
        inside = range(begin, min(begin + every, count))
        shares = [sum(s <= i < s + frames for i in inside) for s in starts]
        np.testing.assert_allclose(beats[k], np.average(values, axis=0, weights=shares))


def test_the_chain_is_the_likeliest_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = np.log(rng.dirichlet(np.ones(3), size=5))

        def likelihood(states: tuple[int, ...], found: np.ndarray = found) -> float:
            moves = [np.log(0.8) if a == b else np.log(0.1) for a, b in itertools.pairwise(states)]
            return float(sum(found[i, s] for i, s in enumerate(states)) + sum(moves))

        every = itertools.product(range(3), repeat=5)
        assert tuple(_likeliest(found, 0.2)) == max(every, key=likelihood)


def test_runs_and_neighbours() -> None:
    assert _runs(np.array([1, 1, 0, 2, 2])) == [(0, 2), (2, 3), (3, 5)]
    assert _runs(np.array([1])) == [(0, 1)]
    parts = [Segment(0, 1, "unknown", 0.2), Segment(1, 4, "unknown", 0.6), Segment(4, 5, "a", 0.9)]
    assert _joined(parts) == [Segment(0, 4, "unknown", pytest.approx(0.5)), parts[2]]


NASTY = Timeline(
    Path("a<b>.mp4"),
    (
        Segment(0, 3599.9996, "x --> y\n\n<script>&", 0.5),
        Segment(3599.9996, 3700, "unknown", 0.3),
        Segment(3700, 3701, "=1+1", 0.25),
    ),
    ("x --> y\n\n<script>&", "=1+1"),
    np.array([[0.5, 0.5]]),
    0.5,
)


def test_subtitles_are_well_formed_whatever_the_names() -> None:
    text = files.as_webvtt(NASTY)
    head, *cues = text.strip().split("\n\n")
    assert head == "WEBVTT"
    assert len(cues) == 2  # none for what is unknown
    assert cues[0].splitlines() == ["00:00:00.000 --> 01:00:00.000", "x --&gt; y &lt;script&gt;&amp; (50%)"]
    assert cues[1].splitlines()[0] == "01:01:40.000 --> 01:01:41.000"


def test_the_strip_is_a_picture_whatever_the_names() -> None:
    root = ElementTree.fromstring(files.as_svg(NASTY))
    bars = [part for part in root if part.tag.endswith("rect") and len(part)]
    assert [float(bar.get("width", 0)) for bar in bars] == pytest.approx([933.8, 25.9, 0.3], abs=0.1)
    assert "<script>" not in files.as_svg(NASTY)


def test_tables_do_not_start_formulas() -> None:
    assert "\n3700.00,3701.00,'=1+1,25.0" in files.as_table(NASTY).csv()
    assert files.as_json(NASTY)["segments"][2]["label"] == "=1+1"
