"""One process at a time: the second stops and says who the first one is."""

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

#: seconds between signs of life, and after how many without one a holder on another host may be dead
BEAT, DEAD_AFTER = 20.0, 300.0


def writing(cache: Path) -> AbstractContextManager[str]:
    """:func:`alone` as the writer of ``cache``, with files beside it."""
    place = Path(os.path.realpath(cache))  # whatever links lead to it
    lock, holder = (place.with_name(f".{place.name}.{end}") for end in ("lock", "writer.json"))
    return alone(lock, holder, f"{cache} is being written")


@contextmanager
def alone(lock: Path, holder: Path, doing: str, also: str = "") -> Iterator[str]:
    """Be the only process in such a block; yields what a user should know, or "".

    The lock ends with its process, however that dies. Where a file system keeps locks to one host, the
    holder's sign of life (the file ``holder``) stands in for it. Raises :class:`ClipspmError` with what is
    being done (``doing``), the holder's host, pid and age, and what can be done (wait, or ``also``).
    """
    with room_on(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        one = FileLock(str(lock), is_singleton=False)
        try:
            one.acquire(blocking=False)
        except Timeout:
            raise ClipspmError(f"{doing} by {_who(_read(holder))}; wait for it or stop it{also}") from None
    try:
        news = ""
        found = _read(holder)
        if found:
            if found.get("host") != socket.gethostname():
                _check_dead(holder, f"{doing} by {_who(found)}", also)
            news = f"a writer that is gone left its lock: {_who(found)}"
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        done = threading.Event()
        beat = threading.Thread(target=_beat, args=(holder, done), daemon=True)
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


def _check_dead(holder: Path, doing: str, also: str) -> None:
    """Refuse where a holder on another host may be alive.

    The clocks of two machines can be far apart: a sign of life that is long ago, or in the future, is
    believed only if no other comes while we watch.
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
    with holder.open("rb") as file:  # opened, so that a network file system asks its server
        return os.fstat(file.fileno()).st_mtime


def _beat(holder: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            os.utime(holder)
        except OSError:
            continue  # the next one may come through


def _read(holder: Path) -> dict[str, Any]:
    try:
        with reading(holder):
            content = json.loads(holder.read_text())
    except Unreadable:
        return {}
    return content if isinstance(content, dict) else {}


def _who(found: dict[str, Any]) -> str:
    if not found:
        return "another process"
    try:
        age = f"{max(0.0, time.time() - float(found['started'])):.0f} s"
    except (KeyError, TypeError, ValueError):
        age = "an unknown time"
    return f"process {found.get('pid')} on {found.get('host')}, started {age} ago"
