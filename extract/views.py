"""From a video file to the uint8 pixels that the encoder takes. Runs in decode workers, without torch.

Shapes: V views, T frames; a crop of H x W pixels.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from clipspm.cache.spec import ResizeMode
from clipspm.extract.decode import Backend, read_frames

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


#: the encoder resizes frames of up to this many times ``resize ** 2`` pixels; workers resize larger ones
NATIVE = 4


@dataclass(frozen=True)
class ClipSettings:
    """The frames and views to take from each video, and their size in pixels.

    Frames of up to ``native`` pixels stay as decoded: the encoder resizes them. ``resize_mode``,
    ``crop_width`` and ``fill`` as in :class:`~clipspm.cache.spec.CacheSpec`; ``decoder`` as in
    :func:`~.decode.read_frames`.
    """

    frames: int
    views: int
    resize: int
    crop: int
    interpolation: str
    flip: bool
    min_frames: int
    native: int = 0
    resize_mode: ResizeMode = "shortest"
    crop_width: int | None = None
    fill: tuple[int, ...] = (0, 0, 0)
    decoder: Backend = "auto"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the crop."""
        return self.crop, self.crop_width or self.crop

    @property
    def most_bytes(self) -> int:
        """The most bytes that the pixels of one clip can take."""
        return 3 * self.frames * max(self.views * math.prod(self.shape), self.native)


@dataclass(frozen=True)
class Cut:
    """How frames become views: the size to scale them to, then (top, left, mirrored) of each view.

    Before, ``padding`` pixels (left, top, right, bottom) are added to the scaled frames.
    """

    height: int
    width: int
    boxes: tuple[tuple[int, int, bool], ...]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Clip:
    """One video's pixels and where they came from; ``seconds``: the time it took.

    ``pixels`` are the views, uint8 [V, T, H, W, 3], if ``cut`` is None; otherwise the frames as decoded,
    uint8 [T, height, width, 3], which still have to be made into views by ``cut``.
    """

    pixels: np.ndarray
    cut: Cut | None
    indices: tuple[int, ...]
    pts_seconds: tuple[float | None, ...]
    backend: str
    total: int
    fps: float | None
    seconds: float


def load_clip(path: Path, video_id: str, settings: ClipSettings, room: np.ndarray | None = None) -> Clip:
    """Decode a video, resize its frames, and crop the views from each of them.

    View 0 is the centre crop. Other views are cropped at a random place, and mirrored half of the time if the
    data set allows it; place and mirroring depend only on the video's id and the view, and are the same for
    all frames of a view. The pixels are written into ``room``, uint8 [``settings.most_bytes``], if given.
    Raises :class:`clipspm.extract.failures.DecodeError`.
    """
    start = time.perf_counter()
    cuts: list[Cut] = []

    def each(frame: np.ndarray) -> np.ndarray:
        cuts.append(cut_of(frame.shape[0], frame.shape[1], video_id, settings))
        return frame if frame[..., 0].size <= settings.native else _views(frame, cuts[-1], settings)

    found = read_frames(
        path, settings.frames, backend=settings.decoder, min_frames=settings.min_frames, each=each
    )
    as_decoded = found.frames.ndim == 4
    frames = found.frames if as_decoded else found.frames.swapaxes(0, 1)
    pixels = _empty(frames.shape, room)
    pixels[:] = frames
    return Clip(
        pixels=pixels,
        cut=cuts[0] if as_decoded else None,
        indices=tuple(int(i) for i in found.indices),
        pts_seconds=tuple(None if np.isnan(p) else round(float(p), 6) for p in found.pts_seconds),
        backend=found.backend,
        total=found.total,
        fps=None if found.fps is None else round(found.fps, 6),
        seconds=time.perf_counter() - start,
    )


def still(frame: np.ndarray, settings: ClipSettings) -> np.ndarray:
    """Resize a frame and crop its centre, uint8 [H, W, 3], as :func:`load_clip` does for view 0."""
    view: np.ndarray = _views(frame, cut_of(frame.shape[0], frame.shape[1], "", settings), settings)[0]
    return view


def _empty(shape: tuple[int, ...], room: np.ndarray | None) -> np.ndarray:
    return np.empty(shape, np.uint8) if room is None else room[: math.prod(shape)].reshape(shape)


def cut_of(height: int, width: int, video_id: str, settings: ClipSettings) -> Cut:
    """How frames of ``height`` x ``width`` pixels become views."""
    height, width = scaled_shape(height, width, settings)
    spare = height - settings.shape[0], width - settings.shape[1]
    lacking = [max(0, -gap) for gap in spare]
    above, left = (gap // 2 for gap in lacking)
    rows, columns = (max(0, gap) for gap in spare)
    boxes = tuple(_view_box(video_id, view, rows, columns, settings) for view in range(settings.views))
    return Cut(height, width, boxes, (left, above, lacking[1] - left, lacking[0] - above))


def _views(frame: np.ndarray, cut: Cut, settings: ClipSettings) -> np.ndarray:
    """Resize a frame and crop its views, uint8 [V, H, W, 3]."""
    height, width = settings.shape
    image = Image.fromarray(frame)
    if image.size != (cut.width, cut.height):
        image = image.resize((cut.width, cut.height), _FILTERS[settings.interpolation])
    if any(cut.padding):
        image = ImageOps.expand(image, cut.padding, settings.fill)
    whole = np.asarray(image)
    parts = [(whole[top : top + height, left : left + width], flip) for top, left, flip in cut.boxes]
    return np.stack([part[:, ::-1] if mirrored else part for part, mirrored in parts])


def scaled_shape(height: int, width: int, settings: ClipSettings) -> tuple[int, int]:
    """Height and width of a frame after scaling, before it is padded and cropped.

    The target has the crop's aspect ratio, and ``resize`` is its shorter side. ``squash`` gives the target,
    ``shortest`` the smallest size that covers it and ``longest`` the largest within it, in the frame's own
    aspect ratio.
    """
    crop, mode = settings.shape, settings.resize_mode
    target = [round(side * settings.resize / min(crop)) for side in crop]
    if mode == "squash":
        return target[0], target[1]
    if mode == "shortest" and target[0] == target[1]:
        return resized_shape(height, width, settings.resize)
    ratios = height / target[0], width / target[1]
    ratio = min(ratios) if mode == "shortest" else max(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after scaling the shorter of them to ``short_side``, keeping the aspect ratio."""
    if height <= width:
        return short_side, max(short_side, int(short_side * width / height))
    return max(short_side, int(short_side * height / width)), short_side


def _view_box(
    video_id: str, view: int, spare_height: int, spare_width: int, settings: ClipSettings
) -> tuple[int, int, bool]:
    """(top, left, mirrored) of a view."""
    if view == 0:
        return round(spare_height / 2), round(spare_width / 2), False
    digest = hashlib.sha256(f"{video_id}\0{view}".encode("utf-8", "surrogateescape")).digest()
    top, left = (int.from_bytes(digest[i : i + 8], "big") for i in (0, 8))
    return top % (spare_height + 1), left % (spare_width + 1), settings.flip and digest[16] % 2 == 1
