"""Which runs are meant, what their ablation calls them, and where a page may be written; no PyTorch."""

import json
from collections.abc import Sequence
from pathlib import Path

from clipspm.cache.disk import check_size, reading
from clipspm.cache.home import check_outside
from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.places import known_runs, run_at
from clipspm.train_heads.runs import CONFIG, Run

#: what an ablation's row without changes is called
FULL = "full"


def check_places(places: Sequence[str | Path]) -> None:
    """Raise :class:`UsageError` for a place that is no folder."""
    for place in places:
        if not run_at(place).is_dir():
            raise UsageError(f"there is no run, or folder of runs, {place}; {known_runs()}")


def check_target(option: str, path: Path) -> None:
    """Raise :class:`UsageError` for a file that cannot be written, or that would damage a cache."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: name a file in it")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    check_outside(path)


def row_names(folder: Path) -> dict[Path, str]:
    """Return the names of the rows of the ablation in ``folder``, by cell; nothing where there is none."""
    file = folder / "ablation.json"
    if not file.is_file():
        return {}
    try:
        with reading(file):
            check_size(file)
            content = json.loads(file.read_text("utf-8"))
            tables = content.get("tables", [content])
            return {
                folder / "cells" / str(cell): str(row["name"])
                for table in tables
                for row in table["rows"]
                for cell in row["cells"]
            }
    except ClipspmError:
        return {}


def open_runs(places: Sequence[str | Path]) -> dict[str, Run]:
    """Open the runs at or below ``places`` by name, those of an ablation by its rows and ``full`` first.

    Raises :class:`UsageError` where a folder holds none.
    """
    from clipspm.train_heads.experiments.results import runs_below

    found: dict[str, Run] = {}
    for place in map(run_at, places):
        one = (place / CONFIG).is_file() or not place.is_dir()
        paths = [place] if one else sorted(runs_below(place))
        if not paths:
            raise UsageError(f"{place} holds no run with results: `clipspm eval RUN` makes them")
        known = {path: row_names(path.parent.parent).get(path, path.name) for path in paths}
        for path in sorted(paths, key=lambda path: known[path] != FULL):
            found[known[path] if known[path] not in found else str(path)] = Run.open(path)
    return found
