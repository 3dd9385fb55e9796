"""Stage one of ``clipspm demo``: render the videos, then extract them as any data set."""

from collections.abc import Callable
from pathlib import Path

from clipspm.cache import Cache, Split, open_cache
from clipspm.extract.demo import CLASSES, DEMO_SPLITS, render_demo
from clipspm.extract.pipeline import ExtractConfig, Progress, extract

CLIPS, QUICK_CLIPS = 40, 14  # per class


def extract_demo(
    where: Path,
    *,
    quick: bool = False,
    on_message: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Cache, list[dict[str, Split]]]:
    """Render and extract below ``where`` what is not there yet.

    Returns the cache and the three class splits (class name -> split).
    """
    videos = where / "videos"
    on_message(f"rendering {QUICK_CLIPS if quick else CLIPS} clips for each of {len(CLASSES)} actions")
    render_demo(videos, clips_per_class=QUICK_CLIPS if quick else CLIPS)
    config = ExtractConfig(dataset="demo", videos=videos, out=where / "cache.zarr", batch_size=256)
    result = extract(config, on_start=on_message, on_progress=on_progress)
    on_message(f"{result.done} videos encoded in {result.seconds:.1f} s, {result.already} were there already")
    return open_cache(result.path), [named_splits(k) for k in range(len(DEMO_SPLITS))]


def named_splits(k: int) -> dict[str, Split]:
    """Split ``k`` of the demo by class name."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    return {CLASSES[folder]: split for split in splits for folder in DEMO_SPLITS[k][split]}
