"""The Ray engine: each actor opens the task once and does one item at a time; dead actors are replaced."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from clipspm.engines.base import Done, EngineConfig, Task, Work
from clipspm.errors import ClipspmError

#: how often an item is tried again after its actor died
RETRIES = 3
_OBJECT_STORE = 100 * 2**20  # bytes; enough, because features go through the file system


class Actor:
    """A worker; Ray restarts it with the same arguments if its process dies."""

    def __init__(self, task: Task[Any]) -> None:
        self._task, self._stack = task, ExitStack()
        self._work: Work[Any, Any] | None = None

    def do(self, item: Any) -> Any:
        """Do one item; the first one opens the task."""
        if self._work is None:
            self._work = self._stack.enter_context(self._task.open(None))
        return next(self._work([item]))

    def close(self) -> None:
        """Close the task."""
        self._stack.close()


class RayEngine:
    """Actors on the cluster at ``ray_address``, or on a local Ray that is started for the work."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config

    def map(self, task: Task[Done], items: Sequence[Any]) -> Iterator[Done]:
        """Yield results in the order they finish.

        Raises :class:`ClipspmError` for an item that fails, or whose actor dies more than ``RETRIES`` times.
        """
        config = self.config
        own = not ray.is_initialized()
        if own:
            self._connect()
        try:
            count = min(config.jobs or self._fitting(), len(items))
            kind: Any = ray.remote(Actor)
            kind = kind.options(
                max_restarts=-1, max_task_retries=RETRIES, num_cpus=config.cpus, num_gpus=config.gpus
            )
            actors: list[Any] = [kind.remote(task) for _ in range(count)]
            waiting = list(reversed(items))
            busy = {actor.do.remote(waiting.pop()): actor for actor in actors if waiting}
            while busy:
                ready, _ = ray.wait(list(busy))
                actor = busy.pop(ready[0])
                result = _result(ready[0])
                if waiting:
                    busy[actor.do.remote(waiting.pop())] = actor
                yield result
            ray.get([actor.close.remote() for actor in actors])
        finally:
            if own:
                ray.shutdown()

    def _connect(self) -> None:
        config = self.config
        try:
            if config.ray_address:
                ray.init(address=config.ray_address, log_to_driver=False, logging_level=logging.WARNING)
            else:
                needed = config.cpus * (config.jobs or 1)
                ray.init(
                    num_cpus=max(needed, 2),
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ClipspmError(f"Ray cannot be used: {' '.join(str(error).split())}") from error
        there = ray.cluster_resources().get("GPU", 0)
        if (
            not config.ray_address and there < config.gpus
        ):  # a cluster may add GPUs later, this machine cannot
            ray.shutdown()
            raise ClipspmError(
                f"--gpus {config.gpus:g} per actor, but Ray finds {there:g} on this machine: use fewer, or "
                "name a cluster with --ray-address"
            )

    def _fitting(self) -> int:
        """The number of actors that fit on the cluster."""
        there = ray.cluster_resources()
        by_cpu = int(there.get("CPU", 1) // max(self.config.cpus, 1))
        by_gpu = int(there.get("GPU", 0) // self.config.gpus) if self.config.gpus else by_cpu
        return max(1, min(by_cpu, by_gpu))


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ClipspmError):
            raise cause from error
        raise ClipspmError(f"a Ray worker failed: {' '.join(str(cause or error).split())[-300:]}") from error
    except RayActorError as error:
        raise ClipspmError(
            f"a Ray worker died {RETRIES + 1} times at the same work: {' '.join(str(error).split())[:300]}"
        ) from error
