"""What happens when in a long video: the cut into segments that each look most like a clip of one class.

Shapes: F frames, T frames of a clip, B beats, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipspm.errors import UsageError
from clipspm.recognise.recognizer import UNKNOWN, FewShotRecognizer
from clipspm.recognise.unknown import standing_out

#: seconds
_WINDOW, _STRIDE = 2.0, 0.5
#: the shortest and the longest segment, in windows
_SHORTEST, _LONGEST = 0.5, 2.0
#: segments that are scored at a time
_BATCH = 512

Numbers = npt.NDArray[np.float64]
#: the first beat of a segment, and the first after it
Part = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """A part of a video, from ``start`` to ``end`` in seconds, in which one thing happens.

    ``probability``: that of the class; for ``unknown`` that of the class it would have been.
    """

    start: float
    end: float
    label: str
    probability: float


@dataclass(frozen=True)
class Timeline:
    """What a video shows: segments from its start to its end, with labels among ``classes`` or ``unknown``.

    Segments begin and end at multiples of ``stride`` seconds.
    """

    path: Path
    segments: tuple[Segment, ...]
    classes: tuple[str, ...]
    stride: float


def timeline(
    recognizer: FewShotRecognizer,
    path: str | Path,
    *,
    window: float | None = None,
    stride: float | None = None,
) -> Timeline:
    """Cut a video into segments, each of which looks like a clip of one class.

    Every part that begins and ends at a multiple of ``stride`` seconds and lasts half a ``window`` to two is
    scored as a clip of its own: its frames are chosen as those of a support are, and decoded and encoded once
    for all. Of all ways to cut the video that is taken whose segments have the largest sum of the best
    class's log-probability times the length. ``window``: how long an action lasts; by default as long as the
    supports, the median, or 2 s where that is not known. ``stride``: half a second, or a quarter of the
    window if that is less. Segments that do not stand out are ``unknown`` where the recognizer has a
    threshold; neighbours with one label are one segment.

    Raises :class:`UsageError` for a stride that is not between zero and the window, :class:`DecodeError` for
    the video.
    """
    window = window or recognizer.seconds_ or _WINDOW
    stride = min(_STRIDE, window / 4) if stride is None else stride
    if not 0 < stride <= window:
        raise UsageError(
            f"--stride {stride:g} s: it must be more than 0 and at most the window, {window:g} s"
        )
    frames = recognizer.encoder_.frames
    step = stride / max(1, round(stride * frames / (_SHORTEST * window)))
    features = recognizer.encoder_.encode_steadily(path, step)
    every = round(stride / step)
    edges = [*range(0, len(features), every), len(features)]
    parts = candidates(len(edges) - 1, round(_SHORTEST * window / stride), round(_LONGEST * window / stride))
    probabilities, out = _scored(recognizer, features, [(edges[a], edges[b]) for a, b in parts])
    gains = np.log(probabilities.max(1).clip(1e-12)) * [b - a for a, b in parts]
    segments = []
    for row in best_cut(parts, gains):
        state = int(probabilities[row].argmax())
        label = str(recognizer.classes_[state])
        if recognizer.threshold_ is not None and out[row] < recognizer.threshold_.value:
            label = UNKNOWN
        start, end = (edges[beat] * step for beat in parts[row])
        segments.append(Segment(start, end, label, float(probabilities[row, state])))
    return Timeline(Path(path), tuple(_joined(segments)), tuple(map(str, recognizer.classes_)), stride)


def candidates(beats: int, shortest: int, longest: int) -> list[Part]:
    """Return all parts of ``shortest`` to ``longest`` beats, by their end; of a short video all of it."""
    shortest = max(1, min(shortest, beats))
    longest = max(longest, 2 * shortest - 1)  # so that any length is a sum of some
    return [
        (end - length, end)
        for end in range(1, beats + 1)
        for length in range(shortest, min(longest, end) + 1)
    ]


def best_cut(parts: Sequence[Part], gains: npt.ArrayLike) -> list[int]:
    """Return which of ``parts``, sorted by their end, cover all beats with the largest sum of gains."""
    best: dict[int, tuple[float, int]] = {0: (0.0, -1)}
    for row, ((start, end), gain) in enumerate(zip(parts, np.asarray(gains).tolist(), strict=True)):
        if start in best:
            total = best[start][0] + gain
            if end not in best or total > best[end][0]:
                best[end] = total, row
    chosen: list[int] = []
    end = parts[-1][1]
    while end > 0:
        row = best[end][1]
        chosen.append(row)
        end = parts[row][0]
    return chosen[::-1]


def _scored(
    recognizer: FewShotRecognizer, features: npt.NDArray[np.float32], parts: Sequence[Part]
) -> tuple[Numbers, Numbers]:
    """Return probabilities of parts of ``features`` [F, D], each as a clip, and how much they stand out."""
    count, classifier = recognizer.encoder_.frames, recognizer.classifier_
    bounds = np.array(parts)[:, :, np.newaxis]
    rows = bounds[:, 0] + (2 * np.arange(count) + 1) * (bounds[:, 1] - bounds[:, 0]) // (2 * count)
    batches = [features[rows[start : start + _BATCH]] for start in range(0, len(rows), _BATCH)]
    return (
        np.concatenate([classifier.predict_proba(clips) for clips in batches]),
        np.concatenate([standing_out(classifier.logits(clips)) for clips in batches]),
    )


def _joined(segments: Sequence[Segment]) -> list[Segment]:
    """Make one of neighbours with the same label, the probability by length."""
    out: list[Segment] = []
    for segment in segments:
        if out and out[-1].label == segment.label:
            before = out.pop()
            lengths = before.end - before.start, segment.end - segment.start
            mean = float(np.average([before.probability, segment.probability], weights=lengths))
            segment = Segment(before.start, segment.end, segment.label, mean)
        out.append(segment)
    return out
