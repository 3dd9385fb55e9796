"""What ``clipspm demo`` would render, without doing it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipspm.tables import Table

from .render import clip_files
from .worlds import World

CLIPS, QUICK_CLIPS = 40, 14  # per class


def describe_worlds(where: Path, worlds: Sequence[World], *, quick: bool = False) -> list[dict[str, Any]]:
    """Return plain facts of each world below ``where``; ``to_render``: its videos that are not there yet.

    Videos that an earlier one of ``worlds`` renders are not counted again.
    """
    rows: list[dict[str, Any]] = []
    promised: set[Path] = set()
    for world in worlds:
        files = {
            path
            for path, *_ in clip_files(world.videos(where), QUICK_CLIPS if quick else CLIPS, world=world.name)
        }
        missing = {path for path in files - promised if not path.exists()}
        promised |= files
        rows.append(
            {
                "world": world.name,
                "about": world.about,
                "dataset": world.dataset,
                "classes": {name: len(folders) for name, folders in world.splits[0].items()},
                "videos": len(files),
                "to_render": len(missing),
                "folder": str(world.folder(where)),
            }
        )
    return rows


def plan_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the facts of :func:`describe_worlds` as a table."""
    lines = []
    for row in rows:
        classes = "/".join(str(row["classes"][split]) for split in ("train", "val", "test"))
        counts = [str(row[key]) for key in ("videos", "to_render")]
        lines.append([row["world"], row["dataset"], classes, *counts])
    columns = ["world", "data set", "train/val/test classes", "videos", "to render"]
    notes = [f"{row['world']}: {row['about']}, in {row['folder']}" for row in rows]
    return Table(columns, lines, notes=[*notes, "nothing was written"], text=columns[1:2])
