"""Write files so that they are complete or absent, even after a power loss; report I/O errors in one line.

When a function here returns, what it wrote, renamed or created is on the disk: content and name.
"""

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipspm.errors import ClipspmError, plain

_AGAIN = "run the same command again: it goes on where it stopped"


class DiskFull(ClipspmError):
    """No room to write ``path``. ``then``: what to do once there is room."""

    def __init__(
        self, path: Path, detail: str = "", then: str = _AGAIN, *, reason: str = "the disk is full"
    ) -> None:
        self.path, self.detail, self.then, self.reason = path, detail, then, reason
        free = size_text(free_bytes(path))
        super().__init__(f"cannot write {path}: {reason} ({free} free{detail}). Free some space and {then}")

    def but(self, then: str = _AGAIN) -> "DiskFull":
        """Return a copy of this error with ``then`` as its advice."""
        return DiskFull(self.path, self.detail, then, reason=self.reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return _disk_full, (self.path, self.detail, self.then, self.reason)


def _disk_full(path: Path, detail: str, then: str, reason: str) -> DiskFull:
    return DiskFull(path, detail, then, reason=reason)


_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full for this user",
    errno.EFBIG: "the disk is full for a file of that size",
}


@contextmanager
def room_on(path: Path) -> Iterator[None]:
    """Turn "no space left", "over quota" and "file too large" inside the block into :class:`DiskFull`."""
    try:
        yield
    except OSError as error:
        # HDF5 gives the code only in its message
        code = errno.ENOSPC if "errno = 28" in str(error) else error.errno
        if code in _NO_ROOM:
            raise DiskFull(path, reason=_NO_ROOM[code]) from error
        raise


def free_bytes(path: Path) -> int:
    """Free bytes on the file system of ``path``, which need not exist yet."""
    return shutil.disk_usage(_nearest_existing(path)).free


def size_text(count: float) -> str:
    """Format a number of bytes: ``0 B``, ``3.4 kB``, ``12.0 MB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} PB"


def check_room(path: Path, needed: int) -> None:
    """Raise :class:`ClipspmError` if fewer than ``needed`` bytes are free for a cache at ``path``."""
    free = free_bytes(path)
    if free < needed:
        raise ClipspmError(
            f"{_nearest_existing(path)} has {size_text(free)} free, the cache needs {size_text(needed)}: "
            "free some space or choose another --out"
        )


def _nearest_existing(path: Path) -> Path:
    """``path`` if it exists, else its nearest parent that does."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place


#: applied to new files here, because safetensors makes files that only their owner can read
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a unique temporary path that replaces ``path`` when the block succeeds.

    The file gets the default permissions of a new file. Raises :class:`DiskFull` where there is no room.
    """
    aside = hidden(path, f"{secrets.token_hex(4)}.new")
    with room_on(path):
        make_folder(path.parent)
        try:
            yield aside
            aside.chmod(0o666 & ~_UMASK)
            sync(aside)
            aside.replace(path)
            sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file and rename it: a reader sees the old content or the new one."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def write_json(path: Path, payload: Any) -> None:
    """Write ``payload`` as indented JSON, atomically. Raises ValueError for NaN and infinity."""
    text = json.dumps(payload, indent=2, allow_nan=False) + "\n"
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a file that a user named, atomically; pipes and devices are written directly.

    If ``path`` is a link, its target is written.
    """
    data, real = text.encode("utf-8", "backslashreplace"), Path(os.path.realpath(path))
    if real.exists() and not real.is_file():
        with room_on(path):
            real.write_bytes(data)
        return
    with replacing(real) as aside:
        aside.write_bytes(data)


def append(path: Path, data: bytes) -> None:
    """Append to a file, creating it if need be; if not all of ``data`` fits, nothing is added."""
    begins = not path.exists()
    with room_on(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
    if begins:
        sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents."""
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
    """Flush a file, or a folder with all its content, to disk."""
    for place, _, files in os.walk(path):
        for name in files:
            sync(Path(place, name))
        sync(Path(place))
    if not path.is_dir():
        sync(path)


def hidden(path: Path, suffix: str) -> Path:
    """``.NAME.SUFFIX`` beside ``path``, for our temporary files."""
    return path.with_name(f".{path.name}.{suffix}")


def discard(path: Path) -> None:
    """Remove a folder or file atomically: a kill leaves all of it, or nothing under its name."""
    dead = hidden(path, "dead")
    remove(dead)
    if path.exists():
        move(path, dead)
        remove(dead)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Unreadable(ClipspmError):
    """``file`` cannot be read, or does not hold what it should."""

    def __init__(self, file: Path, said: str) -> None:
        self.file, self.said = file, said
        super().__init__(said)

    def __reduce__(self) -> tuple[Any, ...]:
        return Unreadable, (self.file, self.said)


_KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a pipe"),
    (lambda mode: not stat.S_ISREG(mode), "it is not a regular file"),
)
_MOST_CHARACTERS = 300  # longest message of a library that is quoted


@contextmanager
def reading(file: Path, problem: str = "") -> Iterator[None]:
    """Turn any error inside the block into :class:`Unreadable`, which names ``file`` in one line.

    The message is "cannot read FILE: WHY", or "FILE PROBLEM: WHY" if ``problem`` is given. Anything but a
    regular file is refused before the block runs, because a pipe may never end.
    """
    begins = f"{file} {problem}" if problem else f"cannot read {file}"
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        why = "it is a broken link" if file.is_symlink() else plain(error)
        raise Unreadable(file, f"{begins}: {why}") from error
    for is_kind, why in _KINDS:
        if is_kind(mode):
            raise Unreadable(file, f"{begins}: {why}")
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, DiskFull):
        raise
    except BaseException as error:  # damaged bytes can raise anything; panics in Rust are no Exception
        if isinstance(error, ClipspmError) and str(file) in str(error):
            raise
        raise Unreadable(file, f"{begins}: {_reason(error)}") from error


def check_size(file: Path, most: int = 2**28) -> None:
    """Raise :class:`Unreadable` if ``file`` has more than ``most`` bytes; no video list has 2**28."""
    size = file.stat().st_size
    if size > most:
        raise Unreadable(file, f"{file} has {size_text(size)}, at most {size_text(most)} are read")


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it would take more memory than there is"
    said = plain(error)
    return said if len(said) <= _MOST_CHARACTERS else said[:_MOST_CHARACTERS] + " ..."
