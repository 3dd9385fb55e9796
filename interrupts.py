"""Control where Ctrl-C may interrupt: not in imports, inside a change that must be whole, or in children."""

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

#: seconds that an import may still take after Ctrl-C, and seconds between checks whether it is done
_PATIENCE, _LOOK_EVERY = 1.0, 0.02


def defer_interrupts_in_imports() -> None:
    """From now on, let Ctrl-C raise KeyboardInterrupt only outside imports.

    A module whose import is cut short fails later with another error, and some modules swallow the exception.
    Ctrl-C therefore waits for the import, at most a second; after that the process exits with the code of an
    interruption. Where SIGINT is ignored, as in background jobs, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _InterruptHandler())


class _InterruptHandler:
    """SIGINT handler that sends the signal again later while an import is running."""

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
        again = threading.Timer(_LOOK_EVERY, _interrupt)
        again.daemon = True
        again.start()


def _interrupt() -> None:
    """Send SIGINT to the main thread, which also wakes it from a blocking call."""
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
    """Exit at once with the code of an interruption; Ctrl-C may have broken what Python's cleanup uses."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(Interrupted.exit_code)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends. Does nothing outside the main thread, which alone gets it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is None:  # the handler was not installed from Python and cannot be restored
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
def children_ignore_interrupts() -> Iterator[None]:
    """Block Ctrl-C in processes and threads started inside the block; their parent must end them.

    A terminal sends Ctrl-C to every process, and each would print a traceback of its own.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
