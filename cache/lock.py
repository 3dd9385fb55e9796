"""Locks between processes: the second process stops and says who holds the lock."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clipspm.cache.disk import Unreadable, reading, room_on, write_atomically
from clipspm.errors import ClipspmError

#: seconds between heartbeats, and seconds without one after which a holder on another host may be dead
BEAT, DEAD_AFTER = 20.0, 300.0


def writing(cache: Path) -> AbstractContextManager[str]:
    """Be the only writer of ``cache`` inside the block (see :func:`alone`); the lock files lie beside it."""
    place = Path(os.path.realpath(cache))  # whatever links lead to it
    lock, holder = (place.with_name(f".{place.name}.{end}") for end in ("lock", "writer.json"))
    return alone(lock, holder, f"{cache} is being written")


@contextmanager
def alone(lock: Path, holder: Path, doing: str, also: str = "") -> Iterator[str]:
    """Be the only process that holds ``lock`` inside the block; yields a note for the user, or "".

    The operating system frees the lock when its process dies. Some file systems keep locks local to a host;
    there, the file ``holder``, touched every :data:`BEAT` seconds, tells whether another host holds the lock.
    Raises :class:`ClipspmError` with what is going on (``doing``), the holder's host, pid and age, and what
    to do: wait, stop it, or ``also``.
    """
    with room_on(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        one = FileLock(str(lock), is_singleton=False)
        try:
            one.acquire(blocking=False)
        except Timeout:
            raise ClipspmError(
                f"{doing} by {_describe(_read_holder(holder))}; wait for it or stop it{also}"
            ) from None
    try:
        news = ""
        found = _read_holder(holder)
        if found:
            if found.get("host") != socket.gethostname():
                _refuse_if_alive(holder, f"{doing} by {_describe(found)}", also)
            news = f"took over the lock of a writer that is gone: {_describe(found)}"
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        done = threading.Event()
        beat = threading.Thread(target=_keep_alive, args=(holder, done), daemon=True)
        try:
            write_atomically(holder, json.dumps(me).encode())
            beat.start()
            yield news
        finally:
            done.set()
            if beat.is_alive():
                beat.join()
            holder.unlink(missing_ok=True)
    finally:
        one.release()


def _refuse_if_alive(holder: Path, doing: str, also: str) -> None:
    """Raise :class:`ClipspmError` if a holder on another host may be alive.

    The clocks of two machines can differ: where the last heartbeat seems old, or in the future, wait for
    another one before taking the holder for dead.
    """
    last = _sign_of_life(holder)
    quiet = time.time() - last
    if 0 <= quiet < DEAD_AFTER:
        raise ClipspmError(
            f"{doing} (last sign of life {quiet:.0f} s ago); wait for it, stop it, or if it is gone "
            f"try again after {DEAD_AFTER:.0f} s{also}"
        )
    until = time.monotonic() + 3 * BEAT
    while time.monotonic() < until:
        time.sleep(BEAT / 10)
        if _sign_of_life(holder) != last:
            raise ClipspmError(
                f"{doing}, whose clock differs from this machine's; wait for it, or stop it{also}"
            )


def _sign_of_life(holder: Path) -> float:
    with holder.open("rb") as file:  # opening makes a network file system ask its server
        return os.fstat(file.fileno()).st_mtime


def _keep_alive(holder: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            os.utime(holder)
        except OSError:
            continue  # the next one may succeed


def _read_holder(holder: Path) -> dict[str, Any]:
    try:
        with reading(holder):
            content = json.loads(holder.read_text())
    except Unreadable:
        return {}
    return content if isinstance(content, dict) else {}


def _describe(found: dict[str, Any]) -> str:
    if not found:
        return "another process"
    try:
        age = f"{max(0.0, time.time() - float(found['started'])):.0f} s"
    except (KeyError, TypeError, ValueError):
        age = "an unknown time"
    return f"process {found.get('pid')} on {found.get('host')}, started {age} ago"
