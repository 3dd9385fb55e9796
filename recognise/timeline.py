"""What happens when in a long video: windows that share frames, smoothed into segments.

Shapes: F frames, T frames of a window, W windows, B beats, C classes.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipspm.errors import UsageError
from clipspm.recognise.recognizer import UNKNOWN, FewShotRecognizer
from clipspm.recognise.unknown import standing_out

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """A part of a video, from ``start`` to ``end`` in seconds, in which one thing happens.

    ``probability``: the mean of the class's, over the windows that share in the segment; for ``unknown`` that
    of the class it would have been.
    """

    start: float
    end: float
    label: str
    probability: float


@dataclass(frozen=True)
class Timeline:
    """What a video shows. ``beats`` [B, C]: probabilities of ``classes`` in each ``stride`` seconds of it."""

    path: Path
    segments: tuple[Segment, ...]
    classes: tuple[str, ...]
    beats: Numbers
    stride: float


def timeline(
    recognizer: FewShotRecognizer, path: str | Path, *, window: float = 2.0, stride: float = 0.5
) -> Timeline:
    """Recognise what a video shows in each ``stride`` seconds, from windows of ``window`` seconds.

    A window has as many frames as a support. Frames are decoded and encoded once: the stride is rounded to a
    whole number of them. A beat has the mean probabilities of the windows over it, and the likeliest sequence
    of classes is taken in which one lasts a window on average. Segments whose windows do not stand out are
    ``unknown`` where the recognizer has a threshold. Raises :class:`UsageError` for a stride that is not
    between zero and the window, :class:`DecodeError` for the video.
    """
    if not 0 < stride <= window:
        raise UsageError(
            f"--stride {stride:g} s: it must be more than 0 and at most the window, {window:g} s"
        )
    frames = recognizer.encoder_.frames
    step = window / frames
    every = max(1, round(stride / step))
    features = recognizer.encoder_.encode_steadily(path, step)
    length = len(features) * step
    windows = _windows(features, frames, every)
    logits = recognizer.classifier_.logits(windows)
    probabilities = recognizer.classifier_.predict_proba(windows)
    beats, out = (
        _by_beat(values, frames, every, len(features))
        for values in (probabilities, standing_out(logits)[:, np.newaxis])
    )
    states = _likeliest(np.log(beats.clip(1e-12)), switch=min(0.5, every * step / window))
    segments = []
    for first, last in _runs(states):
        state, inside = states[first], slice(first, last)
        label = str(recognizer.classes_[state])
        if recognizer.threshold_ is not None and out[inside].mean() < recognizer.threshold_.value:
            label = UNKNOWN
        start, end = first * every * step, min(last * every * step, length)
        segments.append(Segment(start, end, label, float(beats[inside, state].mean())))
    return Timeline(
        Path(path), tuple(_joined(segments)), tuple(map(str, recognizer.classes_)), beats, every * step
    )


def _windows(features: npt.NDArray[np.float32], frames: int, every: int) -> npt.NDArray[np.float32]:
    """Cut [F, D] into windows [W, T, D]; the last one ends with the video, a short video is one window."""
    if len(features) < frames:
        rows = (2 * np.arange(frames) + 1) * len(features) // (2 * frames)
        return features[rows][np.newaxis]
    return features[_starts(len(features), frames, every)[:, np.newaxis] + np.arange(frames)]


def _starts(count: int, frames: int, every: int) -> npt.NDArray[np.int64]:
    last = max(0, count - frames)
    return np.unique(np.append(np.arange(0, last + 1, every), last))


def _by_beat(values: Numbers, frames: int, every: int, count: int) -> Numbers:
    """Average ``values`` [W, C] of windows over each beat of ``every`` frames, by what they share: [B, C]."""
    starts = _starts(count, frames, every)
    begins = np.arange(0, count, every)[:, np.newaxis]
    ends = np.minimum(begins + every, count)
    shared = (np.minimum(ends, starts + frames) - np.maximum(begins, starts)).clip(0)
    return np.asarray(shared @ values / shared.sum(1, keepdims=True))


def _likeliest(log_likelihood: Numbers, switch: float) -> npt.NDArray[np.int64]:
    """Return the likeliest states [B] of a chain that changes with probability ``switch`` (Viterbi)."""
    count, classes = log_likelihood.shape
    stay, change = np.log1p(-switch), np.log(switch / max(1, classes - 1))
    moves = np.where(np.eye(classes, dtype=bool), stay, change)
    best, came_from = log_likelihood[0], np.zeros((count, classes), dtype=np.int64)
    for beat in range(1, count):
        ways = best[:, np.newaxis] + moves
        came_from[beat] = ways.argmax(0)
        best = ways.max(0) + log_likelihood[beat]
    states = np.empty(count, dtype=np.int64)
    states[-1] = best.argmax()
    for beat in range(count - 1, 0, -1):
        states[beat - 1] = came_from[beat, states[beat]]
    return states


def _runs(states: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return first and past-the-last index of each run of equal states."""
    edges = [0, *(np.flatnonzero(np.diff(states)) + 1), len(states)]
    return [(int(first), int(last)) for first, last in pairwise(edges)]


def _joined(segments: list[Segment]) -> list[Segment]:
    """Make one of neighbours with the same label (unknown ones), the probability by length."""
    out: list[Segment] = []
    for segment in segments:
        if out and out[-1].label == segment.label:
            before = out.pop()
            lengths = before.end - before.start, segment.end - segment.start
            mean = float(np.average([before.probability, segment.probability], weights=lengths))
            segment = Segment(before.start, segment.end, segment.label, mean)
        out.append(segment)
    return out
