"""Ctrl-C where it may not cut a change in two, and where it is nobody else's business."""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from clipspm.errors import Interrupted

#: seconds that an import may take to its end after Ctrl-C, and between looks at it
_PATIENCE, _LOOK = 1.0, 0.02


def never_inside_imports() -> None:
    """From now on, Ctrl-C raises KeyboardInterrupt only outside imports.

    A module whose import is cut short fails later with some other error, and some swallow the exception. So
    what is being imported is waited for, at most a second: then the process ends with the exit code of
    an interruption. Where SIGINT is ignored, as in jobs in the background, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Caught())


class _Caught:
    """Handler of SIGINT, which comes again while an import goes on."""

    def __init__(self) -> None:
        self.since: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not _importing(frame):
            self.since = None
            raise KeyboardInterrupt
        if self.since is None:
            self.since = time.monotonic()
        if time.monotonic() - self.since > _PATIENCE:
            sys.stderr.write("error: interrupted\n")
            leave()
        again = threading.Timer(_LOOK, _interrupt)
        again.daemon = True
        again.start()


def _interrupt() -> None:
    """Send SIGINT to the main thread, so that it also wakes from what it waits for."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
    else:
        _thread.interrupt_main()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def leave() -> None:
    """End the process at once, without what Python does at its end: Ctrl-C can have upset that too."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(Interrupted.exit_code)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done (in the main thread: others never get it)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is None:  # not Python's to change
        yield
        return
    held: list[Any] = []
    signal.signal(signal.SIGINT, lambda *caught: held.append(caught))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def children_unaware() -> Iterator[None]:
    """Processes and threads started inside the block never see Ctrl-C: whoever started them ends them.

    A terminal sends it to all of them, and each would print a traceback of its own.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
