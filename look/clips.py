"""Frames of videos as small pictures: strips of the frames that a cache was made of."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from clipspm.cache.reader import Cache
from clipspm.errors import ClipspmError
from clipspm.extract.decode_pool import DecodePool
from clipspm.extract.demo.worlds import world_of
from clipspm.extract.failures import DecodeError
from clipspm.extract.views import ClipSettings
from clipspm.progress import track

#: height of a strip in pixels, most frames in it, and JPEG quality
HEIGHT, FRAMES, QUALITY = 56, 8, 72
#: seconds for one video
_PATIENCE = 30.0


@dataclass(frozen=True)
class Strip:
    """A picture of frames side by side: a data URI, its size in pixels, and how many frames it has."""

    uri: str
    width: int
    height: int
    frames: int


@dataclass(frozen=True)
class Strips:
    """Pictures of videos by id; ``why``: what is to say about those that are missing, or nothing."""

    by_id: dict[str, Strip] = field(default_factory=dict)
    why: str = ""


def find_videos(cache: Cache, given: Path | None, wanted: Sequence[str]) -> Path | None:
    """Return the folder that the paths of ``cache`` lie below: ``given``, or a usual place.

    None where none of them has any of the first few of the videos ``wanted``.
    """
    chosen = set(wanted[:8])
    paths = [video.path for video in cache.good if video.id in chosen]
    dataset, here = cache.spec.dataset, cache.path.absolute().parent
    if given is not None:
        places = [given.parent if given.is_file() else given]
    else:
        places = [here / "videos"]
        try:
            world = world_of(dataset)
            places += [world.videos(here), world.videos(here.parent)]
        except (KeyError, ValueError, StopIteration):
            pass
        data = os.environ.get("CLIPSPM_DATA")
        places += [Path(data) / dataset] if data else []
        places.append(Path("data") / dataset)
    return next((place for place in places if any((place / path).exists() for path in paths)), None)


def strips(cache: Cache, root: Path | None, wanted: Sequence[str], *, frames: int = FRAMES) -> Strips:
    """Read the videos ``wanted``, by id, below ``root``, and make a strip of each.

    Frames are those that the cache was made of, cut as its first view. What cannot be read is left out.
    """
    ids = list(dict.fromkeys(wanted))
    if root is None:
        return Strips(why="The videos are not where the cache was made: name their folder with --videos DIR.")
    by_id = {video.id: video for video in cache.good}
    there = [(root / by_id[name].path, name) for name in ids if name in by_id]
    spec = cache.spec
    settings = ClipSettings(
        spec.frames, 1, spec.resize, spec.crop, spec.interpolation, flip=False, min_frames=spec.min_frames
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(cores, 4, len(there)))
    found: dict[str, Strip] = {}
    failed = len(ids) - len(there)
    try:
        with DecodePool(settings, workers=workers, timeout=_PATIENCE) as decoders:
            clips = track(decoders.stream(there), "reading clips", len(there), "clips")
            for (_, name), clip in zip(there, clips, strict=True):
                if isinstance(clip, DecodeError):
                    failed += 1
                else:
                    found[name] = _strip(clip.pixels[0], frames)
    except ClipspmError as error:  # the page goes on with what there is
        return Strips(found, f"Videos could not be read: {error}.")
    why = f"{failed} of {len(ids)} videos could not be read." if failed else ""
    return Strips(found, why)


def _strip(pixels: np.ndarray, most: int) -> Strip:
    """Lay frames [T, H, W, 3] side by side, at most ``most`` of them."""
    count = min(len(pixels), most)
    chosen = pixels[(2 * np.arange(count) + 1) * len(pixels) // (2 * count)]
    width = max(1, round(HEIGHT * chosen.shape[2] / chosen.shape[1]))
    whole = Image.new("RGB", (width * count, HEIGHT))
    for i, frame in enumerate(chosen):
        whole.paste(Image.fromarray(frame).resize((width, HEIGHT), Image.Resampling.BICUBIC), (i * width, 0))
    data = io.BytesIO()
    whole.save(data, "JPEG", quality=QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    return Strip(uri, whole.width, whole.height, count)
