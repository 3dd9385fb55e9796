"""The interface between engines and tasks, and the engine settings."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from clipspm.errors import UsageError

EngineName = Literal["local", "slurm", "ray"]
ENGINES: tuple[EngineName, ...] = ("local", "slurm", "ray")

Item = TypeVar("Item")
Done = TypeVar("Done")
Done_co = TypeVar("Done_co", covariant=True)

#: turns a stream of items into a stream of results
Work = Callable[[Iterable[Item]], Iterator[Done]]


class Task(Protocol[Done_co]):
    """Work for a worker process: picklable, and opened once in each worker."""

    def open(
        self, device: str | None
    ) -> AbstractContextManager[Callable[[Iterable[Any]], Iterator[Done_co]]]:
        """Load what the items need onto ``device`` (None: the task chooses) and yield the work function."""
        ...


class Engine(Protocol):
    """Runs tasks on workers."""

    def map(self, task: Task[Done], items: Sequence[Any]) -> Iterator[Done]:
        """Do each item once (again if its worker dies), and yield the results in the order they finish."""
        ...


def parse_devices(text: str | None) -> tuple[str, ...]:
    """Split an option such as ``cuda:0,cuda:1`` into devices; ``()`` for None.

    Raises :class:`UsageError` if it names no device.
    """
    names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if text is not None and not names:
        raise UsageError(f"--device {text!r} names no device")
    return names


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How work is spread.

    ``devices``: of the local engine, one worker each (none: this process does it all). ``jobs``: Slurm jobs
    or Ray actors; ``cpus`` and ``gpus``: what one of them gets. ``logs``: where Slurm jobs write. ``slurm``:
    settings of submitit's executor, such as ``partition``; ``cluster=local`` runs jobs on this machine.
    """

    name: EngineName = "local"
    devices: tuple[str, ...] = ()
    jobs: int | None = None
    cpus: int = 1
    gpus: float = 0
    ray_address: str | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)
    logs: Path = Path("slurm_logs")

    def __post_init__(self) -> None:
        if not 0 <= self.gpus < float("inf"):
            raise UsageError(f"--gpus is {self.gpus:g}; it must be a number from 0")
        if self.name not in ENGINES:
            raise UsageError(f"unknown engine {self.name!r}: choose one of {', '.join(ENGINES)}")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, got {self.jobs}")
        if self.name != "slurm" and self.slurm:
            raise UsageError("--slurm KEY=VALUE needs --engine slurm")
        if self.name != "ray" and self.ray_address:
            raise UsageError("--ray-address needs --engine ray")
        if self.name != "local" and len(self.devices) > 1:
            raise UsageError(f"--device {','.join(self.devices)}: several devices are for --engine local")
        if self.name == "local" and self.gpus:
            raise UsageError(
                "--gpus needs --engine slurm or ray: on this machine GPUs have names, --device cuda:0,cuda:1"
            )
        if self.name == "slurm" and self.gpus % 1:
            raise UsageError(
                f"--gpus {self.gpus:g}: a Slurm job gets whole GPUs; only --engine ray shares one"
            )
        if self.name == "local" and self.jobs:
            raise UsageError(
                "--jobs needs --engine slurm or ray; the local engine has one worker per --device"
            )
