"""Files that are whole or absent, also after a loss of power, and a full disk that is one clear line.

What a function here has written, renamed or made is on the disk when it returns: content and name.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipspm.errors import ClipspmError


class DiskFull(ClipspmError):
    """No room to write on. ``path``: where."""

    def __init__(self, path: Path, detail: str = "") -> None:
        self.path, self.detail = path, detail
        free = free_bytes(path)
        super().__init__(
            f"the disk is full: {free / 1e6:.1f} MB are free at {path}{detail}. Free some space and run the "
            "same command again: it goes on where it stopped"
        )

    def __reduce__(self) -> tuple[type["DiskFull"], tuple[Path, str]]:
        return DiskFull, (self.path, self.detail)


@contextmanager
def room_on(path: Path) -> Iterator[None]:
    """Turn "no space left" (or over quota) inside the block into :class:`DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(path) from error
        if "errno = 28" in str(error):  # HDF5 tells it in words only
            raise DiskFull(path) from error
        raise


def free_bytes(path: Path) -> int:
    """What is free on the file system that ``path`` is, or will be, on."""
    return shutil.disk_usage(_existing(path)).free


def check_room(path: Path, needed: int) -> None:
    """Refuse to start what cannot fit. ``needed`` in bytes."""
    free = free_bytes(path)
    if free < needed:
        raise ClipspmError(
            f"{_existing(path)} has {free / 1e6:.0f} MB free, the cache needs {needed / 1e6:.0f} MB: "
            "free some space or choose another --out"
        )


def _existing(path: Path) -> Path:
    """The path, or the folder above it that exists."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place


#: what a new file is not permitted; safetensors writes files for their owner only
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, of this caller alone, that replaces ``path`` when the block succeeds.

    The file gets the permissions of any new one.
    """
    make_folder(path.parent)
    aside = hidden(path, f"{secrets.token_hex(4)}.new")
    try:
        yield aside
        aside.chmod(0o666 & ~_UMASK)
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write aside, flush, rename: a reader sees the old content or the new one."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def write_json(path: Path, payload: Any) -> None:
    """Write ``payload`` as indented JSON, atomically; NaN and infinity are refused (not JSON)."""
    text = json.dumps(payload, indent=2, allow_nan=False) + "\n"
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def append(path: Path, data: bytes) -> None:
    """Append to a file that is there."""
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def move(path: Path, target: Path) -> None:
    """Rename within a folder."""
    path.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file's content or a folder's entries to disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(path: Path) -> None:
    """Flush a file, or a folder with all that is in it."""
    for place, _, files in os.walk(path):
        for name in files:
            sync(Path(place, name))
        sync(Path(place))
    if not path.is_dir():
        sync(path)


def hidden(path: Path, suffix: str) -> Path:
    """``.NAME.SUFFIX`` beside ``path``: a name that is ours."""
    return path.with_name(f".{path.name}.{suffix}")


def discard(path: Path) -> None:
    """Remove a folder or file so that a kill leaves all of it, or nothing under its name."""
    dead = hidden(path, "dead")
    remove(dead)
    if path.exists():
        move(path, dead)
        remove(dead)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
