"""Decode videos in worker processes, in order, a bounded number ahead.

Time per video and memory per worker are limited. A worker that hangs, crashes or is killed costs only its
current video and is replaced. Workers write pixels into shared memory (Linux only); without it, pixels go
through the pool's pipe.
"""

import math
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from clipspm.errors import ClipspmError
from clipspm.extract.config import MEMORY
from clipspm.extract.failures import DecodeError
from clipspm.extract.views import Clip, ClipSettings, load_clip
from clipspm.interrupts import children_ignore_interrupts

#: videos that a worker decodes before it is replaced, which bounds leaks of native decoders
_RECYCLE_AFTER = 500
#: videos in decoding or waiting for the encoder, per worker
_AHEAD = 3
#: bytes of shared memory; clips that do not fit go through the pipe
_MOST_SHARED = 2**29
#: exit code of a worker that reached its memory limit
_EXIT_NO_MEMORY = 77
#: pools that are tried for one video before giving up on running workers
_POOLS_PER_VIDEO = 3


@dataclass
class _Job:
    """A scheduled video; ``slot``: its place in shared memory, None for the pipe."""

    path: Path
    video_id: str
    slot: int | None
    pool: ProcessPool
    future: ProcessFuture


class DecodePool:
    """Decode workers; a context manager that stops them on exit.

    ``timeout``: wall-clock limit per video in seconds; ``memory``: limit per worker in GiB.
    """

    def __init__(
        self, settings: ClipSettings, *, workers: int, timeout: float, memory: float = MEMORY
    ) -> None:
        self.settings, self.workers, self.timeout, self.memory = settings, workers, timeout, memory
        places = min(_AHEAD * workers, _MOST_SHARED // settings.most_bytes)
        self._shape = (places, settings.most_bytes)
        self._file = _memory_file(self._shape[0] * self._shape[1])
        self._memory_path = _memory_path(self._file)
        self._slots = _map(self._memory_path, self._shape)
        self._free = list(range(places)) if self._slots is not None else []
        self._pool = self._new_pool()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _stop(self._pool)
        if self._file is not None:
            os.close(self._file)
            self._file, self._slots, self._free = None, None, []

    def stream(self, jobs: Iterable[tuple[Path, str]]) -> Iterator[Clip | DecodeError]:
        """Yield each job's clip, or the error, in the order of ``jobs`` (path, video id).

        A clip's pixels are valid until the next one is requested. Raises :class:`ClipspmError` if workers
        cannot be kept running.
        """
        waiting: deque[_Job] = deque()
        source = iter(jobs)
        while True:
            while len(waiting) < _AHEAD * self.workers:
                video = next(source, None)
                if video is None:
                    break
                slot = self._free.pop() if self._free else None
                waiting.append(_Job(*video, slot, *self._schedule(*video, slot)))
            if not waiting:
                return
            job = waiting.popleft()
            # afterwards no worker writes into its slot any more: pebble waits until it is done or dead
            outcome = self._outcome(job)
            try:
                yield outcome
            finally:
                if job.slot is not None:
                    self._free.append(job.slot)

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self.workers,
            max_tasks=_RECYCLE_AFTER,
            initializer=_start_worker,
            initargs=(self._memory_path, self._shape, self.memory),
            context=multiprocessing.get_context("spawn"),  # no locks or threads inherited
        )

    def _schedule(self, path: Path, video_id: str, slot: int | None) -> tuple[ProcessPool, ProcessFuture]:
        """Schedule a video, in a new pool if this one is broken, as happens when an idle worker dies."""
        arguments = [path, video_id, self.settings, slot]
        with children_ignore_interrupts():
            try:
                return self._pool, self._pool.schedule(_load, args=arguments, timeout=self.timeout)
            except RuntimeError:
                self._renew()
                return self._pool, self._pool.schedule(_load, args=arguments, timeout=self.timeout)

    def _renew(self) -> None:
        _stop(self._pool)
        self._pool = self._new_pool()

    def _outcome(self, job: _Job) -> Clip | DecodeError:
        for left in reversed(range(_POOLS_PER_VIDEO)):
            try:
                return self._result(job)
            except BrokenProcessPool as error:
                if job.pool is self._pool:
                    self._renew()
                if not left:
                    raise ClipspmError(
                        f"decode workers keep dying ({error}; at {job.path}): run the same command again to "
                        "continue where it stopped, with fewer --workers if memory is short"
                    ) from error
                job.pool, job.future = self._schedule(job.path, job.video_id, job.slot)
        raise AssertionError

    def _result(self, job: _Job) -> Clip | DecodeError:
        while not wait([job.future], 1).done:
            if not job.pool.active and not job.future.done():
                raise BrokenProcessPool("the pool ended")
        try:
            clip, shape = job.future.result()
        except BrokenProcessPool:
            raise
        except DecodeError as error:
            return error
        except FutureTimeout:
            return DecodeError("timeout", job.path, f"no frames within {self.timeout:g} s")
        except ProcessExpired as error:
            if error.exitcode == _EXIT_NO_MEMORY:
                return DecodeError("out of memory", job.path, f"it needs more than {self.memory:g} GiB")
            if error.exitcode == -signal.SIGKILL:
                detail = "the decoder was killed, probably because the system ran out of memory"
                return DecodeError("out of memory", job.path, detail)
            return DecodeError("crashed", job.path, f"the decoder died with exit code {error.exitcode}")
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return DecodeError("unreadable", job.path, text)
        if shape is None:
            return clip
        assert self._slots is not None
        assert job.slot is not None
        return replace(clip, pixels=self._slots[job.slot][: math.prod(shape)].reshape(shape))


def _stop(pool: ProcessPool) -> None:
    """Stop the pool and wait until all its workers have ended."""
    pool.stop()
    pool.join()


def _memory_file(size: int) -> int | None:
    """Create an anonymous file of ``size`` bytes in memory, independent of /dev/shm; None if impossible."""
    if sys.platform != "linux" or size == 0:
        return None
    try:
        file = os.memfd_create("clipspm")
    except (OSError, AttributeError):  # old kernel or C library, or not permitted
        return None
    try:
        os.ftruncate(file, size)
    except OSError:  # file size limit
        os.close(file)
        return None
    return file


def _memory_path(file: int | None) -> str:
    """The path under which workers open ``file``; empty if /proc does not show this process's files."""
    place = f"/proc/{os.getpid()}/fd/{file}"
    try:
        return place if file is not None and os.path.samestat(os.stat(place), os.fstat(file)) else ""
    except OSError:
        return ""


def _map(place: str, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        return np.asarray(np.memmap(place, np.uint8, "r+", shape=shape)) if place else None
    except OSError:  # no /proc, or no permission
        return None


# ----------------------------------------------------------------------------------- in the worker process

_slots: np.ndarray | None = None


def _start_worker(place: str, shape: tuple[int, int], memory: float) -> None:
    global _slots
    limit_memory(memory)
    _slots = _map(place, shape)


def limit_memory(most: float) -> None:
    """Limit this process's memory to ``most`` GiB: allocations beyond it fail. Only works on Linux."""
    if sys.platform != "linux":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(most * 2**30)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(wanted, *known) if known else wanted, hard))


def _load(
    path: Path, video_id: str, settings: ClipSettings, slot: int | None
) -> tuple[Clip, tuple[int, ...] | None]:
    """Load a clip. Returns it without pixels and their shape if they are in the slot, else the clip and None.

    A process that runs out of memory exits: what it still holds could make the next video fail.
    """
    try:
        if slot is None or _slots is None:
            return load_clip(path, video_id, settings), None
        clip = load_clip(path, video_id, settings, _slots[slot])
    except MemoryError:
        os._exit(_EXIT_NO_MEMORY)
    except DecodeError as error:
        if error.category == "out of memory":
            os._exit(_EXIT_NO_MEMORY)
        raise
    return replace(clip, pixels=_slots[slot, :0]), clip.pixels.shape
