"""One writer per cache: the second stops and says who the first one is."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clipspm.errors import ClipspmError

#: seconds between signs of life, and after how many without one a writer on another host may be dead
BEAT, DEAD_AFTER = 20.0, 300.0


@contextmanager
def writing(cache: Path) -> Iterator[str]:
    """Be the only writer of ``cache`` inside the block; yields what a user should know, or "".

    The lock ends with its process, however that dies. Where a file system keeps locks to one host, the
    holder's sign of life (a file beside the cache) stands in for it. Raises :class:`ClipspmError` with the
    holder's host, pid and age.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    holder = cache.with_name(f".{cache.name}.writer.json")
    lock = FileLock(str(cache.with_name(f".{cache.name}.lock")), is_singleton=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ClipspmError(
            f"{cache} is being written by {_who(_read(holder))}; wait for it or stop it"
        ) from None
    try:
        news = ""
        found = _read(holder)
        if found:
            if found.get("host") != socket.gethostname():
                _check_dead(cache, holder, found)
            news = f"a writer that is gone left its lock: {_who(found)}"
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        holder.write_text(json.dumps(me))
        done = threading.Event()
        beat = threading.Thread(target=_beat, args=(holder, done), daemon=True)
        beat.start()
        try:
            yield news
        finally:
            done.set()
            beat.join()
            holder.unlink(missing_ok=True)
    finally:
        lock.release()


def _check_dead(cache: Path, holder: Path, found: dict[str, Any]) -> None:
    """Refuse where a writer on another host may be alive.

    The clocks of two machines can be far apart: a sign of life that is long ago, or in the future, is
    believed only if no other comes while we watch.
    """
    last = _sign_of_life(holder)
    quiet = time.time() - last
    if 0 <= quiet < DEAD_AFTER:
        raise ClipspmError(
            f"{cache} is being written by {_who(found)} (last sign of life {quiet:.0f} s ago); "
            f"wait for it, stop it, or if it is gone try again after {DEAD_AFTER:.0f} s"
        )
    until = time.monotonic() + 3 * BEAT
    while time.monotonic() < until:
        time.sleep(BEAT / 10)
        if _sign_of_life(holder) != last:
            raise ClipspmError(
                f"{cache} is being written by {_who(found)}, whose clock differs from this machine's; "
                "wait for it, or stop it"
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
        content = json.loads(holder.read_text())
    except (OSError, ValueError):
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
