"""The interface between engines and tasks, and the engine settings."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

from clipspm.errors import UsageError
from clipspm.options import option, settle

EngineName = Literal["local", "slurm", "ray"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
MOST_THREADS = 1024

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

    name: EngineName = option(
        "local", "This machine, a Slurm cluster (submitit), or Ray.", "Machine", "--engine"
    )
    devices: tuple[str, ...] = ()
    jobs: int | None = option(None, "Slurm jobs or Ray actors.", "Machine", min=1)
    cpus: int = 1
    gpus: float = option(0, "GPUs of each Slurm job (whole ones) or Ray actor.", "Machine", min=0)
    ray_address: str | None = option(
        None, "A running Ray cluster.", "Machine", shown="$RAY_ADDRESS, or one of this machine's own"
    )
    slurm: Mapping[str, Any] = option(
        dict,
        "A setting of the jobs, e.g. partition=gpu or timeout_min=60 (repeatable); cluster=local: here.",
        "Machine",
        example="partition=gpu",
    )
    logs: Path = Path("slurm_logs")

    def __post_init__(self) -> None:
        settle(self)
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
