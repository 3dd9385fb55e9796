"""Remember measurements on this machine for later processes, in ``precision.json`` under the home.

Several processes may use it at once. If the home is not writable, nothing is kept.
"""

import json
from contextlib import suppress
from typing import get_args

from filelock import FileLock

from clipspm.cache.disk import DiskFull, Unreadable, check_size, hidden, reading, write_json
from clipspm.cache.home import home
from clipspm.extract.config import Precision


def recall(key: str) -> str | None:
    """The value kept under ``key``, or None."""
    return _read().get(key)


def remember(key: str, value: str) -> str:
    """Keep ``value`` unless another process was first. Returns the value that is kept."""
    # some file systems have no locks, and the home may not be writable, or be full
    with suppress(OSError, NotImplementedError, DiskFull):
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
