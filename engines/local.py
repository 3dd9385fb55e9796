"""The local engine: this process, or one process per device."""

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
from clipspm.interrupts import children_ignore_interrupts


class LocalEngine:
    """One worker per device; with at most one device, this process does the work and nothing is pickled."""

    def __init__(self, config: EngineConfig) -> None:
        self.devices = config.devices

    def map(self, task: Task[Done], items: Sequence[Any]) -> Iterator[Done]:
        """Yield results in the order they finish; raises :class:`ClipspmError` if a worker process dies."""
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
            len(self.devices), mp_context=context, initializer=_start_worker, initargs=(task, free)
        ) as pool:
            waiting = iter(items)
            with children_ignore_interrupts():
                busy = {pool.submit(_do, item) for item in islice(waiting, len(self.devices))}
            try:
                while busy:  # one item per worker, so that no other starts after an error
                    done, busy = wait(busy, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = future.result()
                        busy |= {pool.submit(_do, item) for item in islice(waiting, 1)}
                        yield result
            except KeyboardInterrupt:  # workers ignore Ctrl-C: do not wait for their items
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
                raise
            except BrokenProcessPool as error:
                raise ClipspmError(
                    "a worker process died (killed, or out of memory): run the same command again to "
                    "continue where it stopped"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


@dataclass
class _Worker:
    """The state of a worker process: task and device, and the opened task after the first item."""

    task: Task[Any]
    device: str
    stack: ExitStack = field(default_factory=ExitStack)
    work: Work[Any, Any] | None = None


_worker: _Worker | None = None


def _start_worker(task: Task[Any], free: Any) -> None:
    """Set up a new worker process: take a free device, and exit when the parent does."""
    global _worker
    _worker = _Worker(task, free.get())
    Finalize(None, _worker.stack.close, exitpriority=100)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _do(item: Any) -> Any:
    here = _worker
    assert here is not None
    if here.work is None:
        here.work = here.stack.enter_context(here.task.open(here.device))
    return next(here.work([item]))
