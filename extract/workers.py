"""Decode videos in worker processes, in order, a bounded number ahead.

Each video has a time limit and a process that can die without taking anything else along: a worker that
hangs, crashes or is killed costs that one video and is replaced.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from clipspm.extract.clip import Clip, ClipSettings, load_clip
from clipspm.extract.decode import DecodeError

#: videos a worker decodes before a fresh one takes its place: leaks of native decoders stay bounded
_RECYCLE_AFTER = 500


def decode_all(
    jobs: Iterable[tuple[Path, str]], settings: ClipSettings, *, workers: int, timeout: float
) -> Iterator[Clip | DecodeError]:
    """Yield each job's clip, or why there is none, in the order of ``jobs`` (path, video id).

    ``timeout`` is the wall-clock limit for one video in seconds. Closing the generator stops the workers.
    """
    context = multiprocessing.get_context("spawn")  # no locks or threads inherited
    waiting: deque = deque()
    source = iter(jobs)
    with ProcessPool(max_workers=workers, max_tasks=_RECYCLE_AFTER, context=context) as pool:
        try:
            while True:
                while len(waiting) < 3 * workers:
                    job = next(source, None)
                    if job is None:
                        break
                    path, video_id = job
                    future = pool.schedule(load_clip, args=[path, video_id, settings], timeout=timeout)
                    waiting.append((path, future))
                if not waiting:
                    return
                path, future = waiting.popleft()
                yield _outcome(path, future, timeout)
        finally:
            pool.stop()


def _outcome(path: Path, future, timeout: float) -> Clip | DecodeError:  # type: ignore[no-untyped-def]
    try:
        return future.result()
    except DecodeError as error:
        return error
    except FutureTimeout:
        return DecodeError("timeout", path, f"no frames within {timeout:g} s")
    except ProcessExpired as error:
        return DecodeError("crashed", path, f"the decoder died with exit code {error.exitcode}")
    except MemoryError:
        return DecodeError("crashed", path, "out of memory while decoding")
    except Exception as error:
        return DecodeError("unreadable", path, f"{type(error).__name__}: {' '.join(str(error).split())}")
