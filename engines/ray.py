"""The Ray engine: each actor opens the task once and does one item at a time; dead actors are replaced."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayActorError, RayTaskError

from clipspm.engines.base import Done, EngineConfig, Task, Work
from clipspm.errors import ClipspmError
from clipspm.progress import remark

#: how often an item is tried again after its actor died
RETRIES = 3
#: seconds to wait for an answer at an address, and for a first actor to start until that is said
_ANSWER, _START = 10, 60
_OBJECT_STORE = 100 * 2**20  # bytes; enough, because features go through the file system


class Actor:
    """A worker; Ray restarts it with the same arguments if its process dies."""

    def __init__(self, task: Task[Any]) -> None:
        self._task, self._stack = task, ExitStack()
        self._work: Work[Any, Any] | None = None

    def start(self) -> None:
        """Do nothing: it is done once Ray has found room for the actor."""

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
            waiting, left = list(reversed(items)), len(items)
            busy = {actor.start.remote(): actor for actor in actors}  # there may not be room for all
            starting = set(busy)
            started: list[Any] = []
            while left:
                ready, _ = ray.wait(list(busy), timeout=None if started else _START)
                if not ready:
                    self._say_none_started()
                    ready, _ = ray.wait(list(busy))
                actor, result = busy.pop(ready[0]), _result(ready[0])
                if waiting:
                    busy[actor.do.remote(waiting.pop())] = actor
                if ready[0] in starting:
                    started.append(actor)
                else:
                    left -= 1
                    yield result
            ray.get([actor.close.remote() for actor in started])
        finally:
            if own:
                ray.shutdown()

    def _connect(self) -> None:
        config, address = self.config, self._address()
        try:
            if address:
                _knock(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            else:
                needed = config.cpus * (config.jobs or 1)
                ray.init(
                    num_cpus=max(needed, 2),
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise ClipspmError(f"Ray cannot be used: {' '.join(str(error).split())}") from error
        there = ray.cluster_resources().get("GPU", 0)
        if not address and there < config.gpus:  # a cluster may add GPUs later, this machine cannot
            ray.shutdown()
            raise ClipspmError(
                f"--gpus {config.gpus:g} per actor, but Ray finds {there:g} on this machine: use fewer, or "
                "name a cluster with --ray-address"
            )

    def _address(self) -> str | None:
        return self.config.ray_address or os.environ.get("RAY_ADDRESS")

    def _say_none_started(self) -> None:
        config, there = self.config, ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
        remark(
            f"note: no Ray actor has started for {_START} s: each takes {config.cpus} CPUs and "
            f"{config.gpus:g} GPUs of one machine (--workers, --gpus), the cluster has {cpus:g} CPUs and "
            f"{gpus:g} GPUs in all, maybe in use; waiting"
        )

    def _fitting(self) -> int:
        """The number of actors that fit on the cluster."""
        there = ray.cluster_resources()
        by_cpu = int(there.get("CPU", 1) // max(self.config.cpus, 1))
        by_gpu = int(there.get("GPU", 0) // self.config.gpus) if self.config.gpus else by_cpu
        return max(1, min(by_cpu, by_gpu))


def _knock(address: str) -> None:
    """Raise OSError if nothing answers at ``HOST:PORT``, for which Ray would try for minutes."""
    place = urlsplit(f"//{address.rpartition('//')[2]}")
    if place.hostname and place.port:
        try:
            socket.create_connection((place.hostname, place.port), timeout=_ANSWER).close()
        except OSError as error:
            raise OSError(f"nothing answers at {address} ({error})") from error


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
