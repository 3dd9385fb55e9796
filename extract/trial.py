"""Measure what an extraction takes by doing a little of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipspm.cache.spec import FINAL
from clipspm.errors import ClipspmError
from clipspm.extract.encoder import tower_of
from clipspm.extract.layers import settle
from clipspm.extract.models import HUB, LOCAL_DIR, TIMM
from clipspm.extract.pipeline import Progress, run
from clipspm.extract.plan import Work
from clipspm.extract.weights import WeightsOutOfReach, built_without_weights

#: videos that are extracted, evenly over the classes
VIDEOS = 16


@dataclass(frozen=True)
class Trial:
    """What was found out of an extraction that is not done.

    ``already``: videos of the ``videos`` that its cache has; ``widths``: of its layers, empty if unknown;
    ``seconds``: what each other video takes, None if that is ``unknown``, which says why.
    """

    videos: int
    already: int
    widths: dict[str, int]
    seconds: float | None
    unknown: str = ""


def try_out(work: Work, on_start: Callable[[str], None] = lambda message: None) -> Trial:
    """Check a dry run of ``work`` as the extraction would, and extract a few of its videos elsewhere.

    Weights that are out of reach, and videos that cannot be read or are not there yet, leave the time
    unknown. Raises :class:`ClipspmError` for what the extraction would refuse.
    """
    work = replace(work, config=replace(work.config, dry_run=True))
    try:
        found = run(work, on_start=on_start)
    except WeightsOutOfReach as error:
        return Trial(len(work.index.plan.videos), 0, _widths_without_weights(work), None, str(error))
    trial = Trial(found.videos, found.already, found.layers, 0.0)
    if found.already >= found.videos:
        return trial
    try:
        return replace(trial, seconds=_seconds_per_video(work))
    except ClipspmError as error:
        return replace(trial, seconds=None, unknown=str(error))


def _seconds_per_video(work: Work) -> float:
    """Return the seconds per video, without loading the encoder and starting the decoders."""
    seen: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        seen.append((time.perf_counter(), progress.done + progress.failed))

    with TemporaryDirectory(prefix="clipspm-trial-") as folder:
        small: dict[str, Any] = {"out": Path(folder, "trial.zarr"), "format": "zarr", "limit": VIDEOS}
        small |= {"max_failures": None, "dry_run": False}
        result = run(replace(work, config=replace(work.config, **small)), on_progress=note)
    if not result.good:
        raise ClipspmError(f"none of the {result.videos} videos that were tried could be read")
    (begun, before), (ended, after) = seen[0], seen[-1]
    return (ended - begun) / (after - before) if after > before else result.seconds / after


def _widths_without_weights(work: Work) -> dict[str, int]:
    """Return the widths of the layers if the architecture is one of open_clip's own ViTs, else nothing."""
    name = str(work.config.model)
    if name.startswith((LOCAL_DIR, HUB, TIMM)):
        return {}
    visual = built_without_weights(name).visual
    if not hasattr(visual, "transformer"):
        return {}
    layers = settle((*work.layers, FINAL), work.tokens, tower_of(name, visual))
    inner = int(visual.transformer.width)
    return {layer: int(visual.output_dim) if layer == FINAL else inner for layer in layers}
