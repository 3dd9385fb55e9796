"""Which clips are meant: labelled ones in class folders or a CSV file, and others to recognise."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.datasets import all_videos, index_dataset


@dataclass(frozen=True)
class Labelled:
    """Clips and their classes, in the same order; ``notes``: warnings for the user."""

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def labelled_clips(place: Path) -> Labelled:
    """Find clips in folders named by their classes, or listed in a CSV file with columns path and class.

    Raises :class:`ClipspmError` where there are none, :class:`UsageError` for fewer than two classes.
    """
    if not place.exists():
        raise UsageError(f"--support {place}: no such folder or CSV file")
    index = index_dataset("folder" if place.is_dir() else "manifest", place)
    if len(index.plan.class_names) < 2:
        raise UsageError(
            f"--support {place} has one class, {index.plan.class_names[0]!r}: two or more are needed"
        )
    videos = index.plan.videos
    notes = tuple(note for note in index.notes if "class split" not in note)
    return Labelled(
        tuple(index.root / video.path for video in videos),
        tuple(video.class_name for video in videos),
        notes,
    )


def clips_at(places: Iterable[Path]) -> list[Path]:
    """Return the clips that are meant by files and folders, each once, in order.

    A folder stands for the videos in it, or itself if it holds frames. Raises :class:`ClipspmError` for a
    folder without any.
    """
    found: list[Path] = []
    for place in places:
        inside = all_videos(place) if place.is_dir() else [place]
        if not inside:
            raise ClipspmError(f"{place} holds no videos and no frames")
        found += inside
    return list(dict.fromkeys(found))
