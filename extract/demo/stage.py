"""Stage one of ``clipspm demo``: render the videos, then extract them like any data set."""

from collections.abc import Callable
from pathlib import Path

from clipspm.cache import Cache, Split, open_cache
from clipspm.cache.transform import convert
from clipspm.cache.writer import parts_path
from clipspm.errors import ClipspmError
from clipspm.extract.config import ExtractConfig
from clipspm.extract.demo import MOTION, WORLDS, World, render_demo
from clipspm.extract.demo.plan import CLIPS, QUICK_CLIPS
from clipspm.extract.pipeline import ExtractResult, Progress, extract

CACHE = "cache.zarr"


def extract_demo(
    where: Path,
    *,
    world: str = MOTION,
    quick: bool = False,
    on_message: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_failures: Callable[[ExtractResult], None] = lambda result: None,
) -> tuple[Cache, list[dict[str, Split]]]:
    """Render and extract the videos of a world under ``where``, as far as missing or failed before.

    A world with the videos of another one starts from the features of that one's cache.
    Returns the cache and the three class splits (class name -> split). Raises :class:`ClipspmError` if a
    video cannot be read.
    """
    drawn, clips = WORLDS[world], QUICK_CLIPS if quick else CLIPS
    videos, out = drawn.videos(where), drawn.folder(where) / CACHE
    if drawn.filmed_as != world and not (out.exists() or parts_path(out).exists()):
        extract_demo(
            where,
            world=drawn.filmed_as,
            quick=quick,
            on_message=on_message,
            on_progress=on_progress,
            on_failures=on_failures,
        )
        convert(WORLDS[drawn.filmed_as].folder(where) / CACHE, out, dataset=drawn.dataset)
    on_message(f"rendering {clips} clips for each of {len(drawn.names)} classes, {drawn.about}")
    render_demo(videos, clips_per_class=clips, world=world)
    config = ExtractConfig(dataset=drawn.dataset, videos=videos, out=out, batch_size=256, retry_failed=True)
    result = extract(config, on_start=on_message, on_progress=on_progress)
    if result.failures:
        path, category, error = result.failures[0]
        on_failures(result)
        raise ClipspmError(
            f"{len(result.failures)} of {result.videos} demo videos could not be read, the first is "
            f"{videos / path} ({category}: {error}): remove {where} and run the demo again; if that does not "
            "help, the installed PyAV (pip package av) cannot read H.264"
        )
    on_message(f"{result.done} videos encoded in {result.seconds:.1f} s, {result.already} were already there")
    return open_cache(result.path), named_splits(drawn)


def named_splits(world: World) -> list[dict[str, Split]]:
    """The three splits of ``world``, each as class name -> split."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    return [
        {world.names[folder]: name for name in splits for folder in split[name]} for split in world.splits
    ]
