"""What was measured once on this machine, for every later process: ``precision.json`` under the home.

Many processes may start at a time. Where the home cannot be written to, nothing is kept.
"""

import json
from contextlib import suppress
from typing import get_args

from filelock import FileLock

from clipspm.cache.disk import Unreadable, check_size, hidden, reading, write_json
from clipspm.cache.home import home
from clipspm.extract.config import Precision


def recall(key: str) -> str | None:
    """What is kept under ``key``."""
    return _read().get(key)


def remember(key: str, value: str) -> str:
    """Keep ``value`` unless another process was first; returns what is kept from now on."""
    # not every file system knows locks, and not every home can be written to
    with suppress(OSError, NotImplementedError):
        path = home() / "precision.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(hidden(path, "lock"), timeout=30, is_singleton=False):
            known = _read()
            value = known.setdefault(key, value)
            write_json(path, known)
    return value


def _read() -> dict[str, str]:
    file = home() / "precision.json"
    try:
        with reading(file):
            check_size(file, 2**20)
            found = json.loads(file.read_text())
    except Unreadable:
        return {}
    known = found if isinstance(found, dict) else {}
    return {key: value for key, value in known.items() if value in get_args(Precision)}
