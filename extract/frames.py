"""Which frames of a video are taken, and what is known of them.

Shapes: T frames, H rows, W columns.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frames:
    """Decoded frames of one video and where they came from.

    ``frames`` uint8 [T, H, W, 3] upright RGB, or the results of ``each``, stacked; ``indices`` int64 [T], in
    order of sequential decoding; ``pts_seconds`` float64 [T], NaN where the file gives no timestamp;
    ``backend`` is ``pyav``, ``decord``, ``torchcodec`` or ``images``; ``total`` frames in the video; ``fps``
    if known.
    """

    frames: np.ndarray
    indices: np.ndarray
    pts_seconds: np.ndarray
    backend: str
    total: int
    fps: float | None


def segment_middles(total: int, count: int) -> np.ndarray:
    """Choose the middle frame of each of ``count`` equal segments of ``total`` frames, int64 [count].

    With fewer frames than segments, frames repeat: ``segment_middles(2, 4)`` is ``[0, 0, 1, 1]``. Raises
    ValueError if either is below 1.
    """
    if total < 1 or count < 1:
        raise ValueError(f"need at least one frame and one segment, got {total} frames, {count} segments")
    return ((2 * np.arange(count, dtype=np.int64) + 1) * total) // (2 * count)
