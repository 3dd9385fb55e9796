"""Decode videos in worker processes, in order, a bounded number ahead.

Each video has a time limit, and a process of limited memory that can die without taking anything else along:
a worker that hangs, crashes or is killed costs that one video and is replaced. Workers write pixels into
memory that they share with this process; only where there is none (it takes Linux) do pixels go through the
pool's pipe.
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

#: videos a worker decodes before a fresh one takes its place: leaks of native decoders stay bounded
_RECYCLE_AFTER = 500
#: videos under way or waiting for the encoder, per worker
_AHEAD = 3
#: bytes of shared memory; clips that find no place in it go through the pipe
_MOST_SHARED = 2**29
#: exit code of a worker that ran out of the memory it may take
_EXIT_NO_MEMORY = 77
#: pools that are tried for one video before workers are taken to be unable to run
_POOLS_PER_VIDEO = 3


@dataclass
class _Job:
    """A video that is asked for: ``slot`` is its place in the shared memory, if it has one."""

    path: Path
    video_id: str
    slot: int | None
    pool: ProcessPool
    future: ProcessFuture


class DecodePool:
    """Worker processes that decode; leaving the context stops them.

    ``timeout`` is the wall-clock limit for one video in seconds, ``memory`` what a worker may take in GiB.
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
        """Yield each job's clip, or why there is none, in the order of ``jobs`` (path, video id).

        A clip's pixels are valid until the next one is asked for. Raises :class:`ClipspmError` where workers
        cannot be started.
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
            # whoever wrote into its slot is done, or dead: pebble waits for that
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
        """By a fresh pool if this one broke: it does where a worker dies that has nothing to do."""
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
                        f"decoding processes do not stay alive ({error}; at {job.path}): run the same "
                        "command again, with fewer --workers if memory is short; it goes on where it stopped"
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
                return DecodeError("out of memory", job.path, f"it takes more than {self.memory:g} GiB")
            if error.exitcode == -signal.SIGKILL:
                detail = "the decoder was killed, as systems do that run out of memory"
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
    """No worker of it is alive afterwards."""
    pool.stop()
    pool.join()


def _memory_file(size: int) -> int | None:
    """An anonymous file of ``size`` bytes in memory, whatever /dev/shm holds; None where there is none."""
    if sys.platform != "linux" or size == 0:
        return None
    try:
        file = os.memfd_create("clipspm")
    except (OSError, AttributeError):  # an old kernel or C library, or not allowed
        return None
    try:
        os.ftruncate(file, size)
    except OSError:  # a limit on the size of files
        os.close(file)
        return None
    return file


def _memory_path(file: int | None) -> str:
    """The path by which workers open it; empty where /proc does not show this process's files."""
    place = f"/proc/{os.getpid()}/fd/{file}"
    try:
        return place if file is not None and os.path.samestat(os.stat(place), os.fstat(file)) else ""
    except OSError:
        return ""


def _map(place: str, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        return np.asarray(np.memmap(place, np.uint8, "r+", shape=shape)) if place else None
    except OSError:  # other users' /proc, or none
        return None


# ----------------------------------------------------------------------------------- in the worker process

_slots: np.ndarray | None = None


def _start_worker(place: str, shape: tuple[int, int], memory: float) -> None:
    global _slots
    limit_memory(memory)
    _slots = _map(place, shape)


def limit_memory(most: float) -> None:
    """Have this process fail to get more than ``most`` GiB; only Linux holds processes to that."""
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
    """A clip; with the shape of its pixels if they lie in the slot, and not in the clip.

    A process that ran out of memory ends: what it keeps of it could make the next video fail.
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
