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
from clipspm.recognise.timeline import Segment, Timeline, _joined, best_cut, candidates, timeline
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


def test_a_video_shorter_than_a_window_is_one_segment(recognizer: FewShotRecognizer, tmp_path: Path) -> None:
    video = write_video(tmp_path / "short.mp4", picture("grow", 7, count=4), fps=8)
    (segment,) = timeline(recognizer, video, window=2.0, stride=0.5).segments
    assert (segment.start, segment.end) == (0, 0.5)


def test_segments_are_about_as_long_as_the_supports(recognizer: FewShotRecognizer, tmp_path: Path) -> None:
    """Of 16 frames at 25 a second."""
    assert recognizer.seconds_ == pytest.approx(0.64)
    video = write_video(tmp_path / "a.mp4", np.concatenate([picture("grow", 7), picture("dusk", 7)]))
    found = timeline(recognizer, video)
    assert found.stride == pytest.approx(0.16)
    assert [segment.label for segment in found.segments] == ["grow", "dusk"]


def test_a_folder_of_frames_has_no_times(recognizer: FewShotRecognizer, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="has no times"):
        timeline(recognizer, tmp_path)


@pytest.mark.parametrize("stride", [0.0, -1.0, 2.5])
def test_a_stride_past_the_window_is_refused(recognizer: FewShotRecognizer, stride: float) -> None:
    with pytest.raises(UsageError, match="at most the window"):
        timeline(recognizer, "a.mp4", window=2.0, stride=stride)


def cuts(beats: int, lengths: range) -> list[list[tuple[int, int]]]:
    """Every way to cut ``beats`` into parts of these lengths."""
    if beats == 0:
        return [[]]
    return [
        [*before, (beats - n, beats)] for n in lengths if n <= beats for before in cuts(beats - n, lengths)
    ]


@pytest.mark.parametrize(("beats", "shortest", "longest"), [(9, 2, 4), (7, 1, 3), (8, 3, 3), (5, 9, 12)])
def test_the_cut_is_the_best_of_all(beats: int, shortest: int, longest: int) -> None:
    rng = np.random.default_rng(0)
    parts = candidates(beats, shortest, longest)
    shortest = min(shortest, beats)
    every = cuts(beats, range(shortest, max(longest, 2 * shortest - 1) + 1))
    assert {part for cut in every for part in cut} <= set(parts)
    for _ in range(20):
        gains = dict(zip(parts, rng.normal(size=len(parts)), strict=True))
        found = [parts[row] for row in best_cut(parts, list(gains.values()))]
        assert found == max(every, key=lambda cut: sum(gains[part] for part in cut))


def test_any_length_can_be_cut() -> None:
    for beats, shortest, longest in itertools.product(range(1, 30), range(6), range(8)):
        parts = candidates(beats, shortest, longest)
        chosen = [parts[row] for row in best_cut(parts, np.zeros(len(parts)))]
        assert [a for a, _ in chosen] == [0, *(b for _, b in chosen[:-1])] and chosen[-1][1] == beats


def test_neighbours_with_one_label_are_one_segment() -> None:
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
