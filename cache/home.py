"""Where caches and runs are kept: ``$CLIPSPM_HOME``, by default ``./clipspm_data``."""

import os
from pathlib import Path

from clipspm.cache.spec import SPEC, VIDEOS
from clipspm.errors import UsageError


def home() -> Path:
    """The folder that holds ``caches/`` and ``runs/``."""
    return Path(os.environ.get("CLIPSPM_HOME") or "clipspm_data")


def caches_dir() -> Path:
    """Where ``extract`` writes without ``--out``, and where the newest cache is looked up."""
    return home() / "caches"


def runs_dir() -> Path:
    """Where ``train-heads`` and ``ablate`` write without ``--run-dir``."""
    return home() / "runs"


def demo_dir() -> Path:
    """Where ``demo`` writes without ``--out``: ``videos/``, ``cache.zarr``, ``runs/``; other worlds below."""
    return home() / "demo"


def demo_dirs() -> list[Path]:
    """Return :func:`demo_dir` and the folders in it: worlds other than the first have one each."""
    first = demo_dir()
    return [first, *sorted(place for place in first.glob("*/") if not place.name.startswith("."))]


def check_outside(path: Path) -> None:
    """Raise :class:`UsageError` if ``path``, to be written, lies inside a cache, which it would damage."""
    for folder in path.absolute().resolve().parents:
        if (folder / SPEC).is_file() and (folder / VIDEOS).is_file():
            raise UsageError(f"{path} would lie inside the cache {folder}: name another path")
