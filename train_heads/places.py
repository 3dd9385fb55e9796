"""Locations and names of runs."""

import re
from pathlib import Path

from clipspm.cache.disk import make_folder, sync
from clipspm.cache.home import runs_dir
from clipspm.errors import ClipspmError, UsageError, plain
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.data import Data


def run_at(place: str | Path) -> Path:
    """Return the directory ``place``, or the run of that name under the home."""
    path = Path(place)
    named = runs_dir() / path
    return named if not path.exists() and not path.is_absolute() and named.is_dir() else path


def known_runs() -> str:
    """Name the newest runs under the home's ``runs/``, for a message."""
    found = sorted(runs_dir().glob("*/config.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    names = [file.parent.name for file in found]
    if not names:
        return f"none at {runs_dir()} either: `clipspm train-heads` makes one"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"at {runs_dir()}: {', '.join(names[:5])}{more}"


def cache_title(data: Data) -> str:
    """Return what to call files made of a cache: its name without suffix and fingerprint.

    The data set comes first unless the name contains it, or the cache is of a mere folder or list.
    """
    stem = re.sub(r"-[0-9a-f]{8}$", "", data.path.stem)
    title = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.")
    dataset = data.spec.dataset
    if not title or not (dataset in title or dataset in ("folder", "manifest")):
        return f"{dataset}-{title}".rstrip("-")
    return title


def default_run_dir(config: TrainConfig, data: Data) -> Path:
    """Make a new directory under the home's ``runs/``, named after the cache and the request."""
    head = config.head.replace(":", ".")
    name = f"{cache_title(data)}-{head}-{config.way}w{config.shots}s-{config.recipe}-seed{config.seed}"
    for count in range(1, 10_000):
        path = runs_dir() / (name if count == 1 else f"{name}-{count}")
        try:
            make_folder(path.parent)
            path.mkdir()  # reserves the name: a process that asks now gets another
            sync(path.parent)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"cannot make {path} ({plain(error)}): set CLIPSPM_HOME to another folder"
            ) from error
        return path
    raise ClipspmError(f"too many runs named {name} under {runs_dir()}: remove some or name a --run-dir")
