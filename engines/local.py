"""This process, or one process per device of this machine."""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.util import Finalize
from typing import Any

from clipspm.engines.base import Done, EngineConfig, Task, Work
from clipspm.errors import ClipspmError
from clipspm.interrupts import children_unaware


class LocalEngine:
    """One worker per device; with one device or none, the worker is this process and nothing is pickled."""

    def __init__(self, config: EngineConfig) -> None:
        self.devices = config.devices

    def map(self, task: Task[Done], items: Sequence[Any]) -> Iterator[Done]:
        """Results as they come. Raises :class:`ClipspmError` if a worker process dies."""
        if len(self.devices) < 2:
            with task.open(self.devices[0] if self.devices else None) as work:
                yield from work(items)
            return
        context = multiprocessing.get_context("spawn")
        free = context.Queue()
        others = set(multiprocessing.active_children())
        for device in self.devices:
            free.put(device)
        with ProcessPoolExecutor(
            len(self.devices), mp_context=context, initializer=_begin, initargs=(task, free)
        ) as pool:
            waiting = iter(items)
            with children_unaware():
                busy = {pool.submit(_one, item) for item in islice(waiting, len(self.devices))}
            try:
                while busy:  # one item per worker: no others are begun once something goes wrong
                    done, busy = wait(busy, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = future.result()
                        busy |= {pool.submit(_one, item) for item in islice(waiting, 1)}
                        yield result
            except KeyboardInterrupt:  # workers never see Ctrl-C: what they are at is not waited for
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
                raise
            except BrokenProcessPool as error:
                raise ClipspmError(
                    "a worker process died (killed, or out of memory): run the same command again, it goes "
                    "on where it stopped"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


@dataclass
class _Process:
    """What a worker process holds: its task and device, and the work once the first item opened it."""

    task: Task[Any]
    device: str
    stack: ExitStack = field(default_factory=ExitStack)
    work: Work[Any, Any] | None = None


_process: _Process | None = None


def _begin(task: Task[Any], free: Any) -> None:
    """In a new worker process: take a device, and end when the parent does."""
    global _process
    _process = _Process(task, free.get())
    Finalize(None, _process.stack.close, exitpriority=100)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _one(item: Any) -> Any:
    here = _process
    assert here is not None
    if here.work is None:
        here.work = here.stack.enter_context(here.task.open(here.device))
    return next(here.work([item]))
