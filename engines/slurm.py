"""The Slurm engine: a submitit job array; each job does a share of the items and is requeued if preempted."""

import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.helpers import as_completed

from clipspm.engines.base import Done, EngineConfig, Task
from clipspm.errors import ClipspmError

_DEFAULT_JOBS = 4
_GENERIC = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "nodes", "name")


@dataclass(frozen=True)
class Share:
    """The items of one job; a requeued job does them again from the start.

    Returns the results, and what went wrong after them, or "".
    """

    task: Task[Any]
    items: tuple[Any, ...]

    def __call__(self) -> tuple[list[Any], str]:
        done: list[Any] = []
        try:
            with self.task.open(None) as work:
                done.extend(work(self.items))  # keeps what came before an error
        except ClipspmError as error:
            return done, str(error)
        except Exception as error:
            traceback.print_exc()
            return done, f"{type(error).__name__}: {error}"
        return done, ""

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The job that submitit queues again when this one is preempted or times out."""
        return submitit.helpers.DelayedSubmission(self)


class SlurmEngine:
    """One job array; the Slurm setting ``cluster=local`` runs its jobs on this machine."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config

    def map(self, task: Task[Done], items: Sequence[Any]) -> Iterator[Done]:
        """Yield results job by job; raises :class:`ClipspmError` at the end if jobs failed, naming a log."""
        config = self.config
        settings: dict[str, Any] = {"timeout_min": 240, "cpus_per_task": config.cpus, **config.slurm}
        cluster = settings.pop("cluster", "slurm")
        if config.gpus:
            settings.setdefault("gpus_per_node", int(config.gpus))
        config.logs.mkdir(parents=True, exist_ok=True)
        try:
            executor = submitit.AutoExecutor(folder=config.logs / "%j", cluster=cluster)
            executor.update_parameters(
                **{k if k in _GENERIC else f"slurm_{k}": v for k, v in settings.items()}
            )
            count = min(config.jobs or _DEFAULT_JOBS, len(items))
            with executor.batch():
                jobs = [executor.submit(Share(task, tuple(items[i::count]))) for i in range(count)]
        except Exception as error:  # no such cluster, a setting that submitit or sbatch does not know
            raise ClipspmError(f"Slurm cannot be used: {' '.join(str(error).split())}") from error
        failed: list[str] = []
        try:
            for job in as_completed(jobs, poll_frequency=1 if cluster == "local" else 10):
                try:
                    done, trouble = job.result()
                except Exception as error:  # it was killed, did not begin, or what it wrote is damaged
                    done = []
                    trouble = f"ended without a result (killed? state {job.state}): {_last_word(error)}"
                yield from done
                if trouble:
                    said = " ".join(trouble.split())[:300]
                    failed.append(f"job {job.job_id}: {said} (log {job.paths.stderr})")
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel()
        if failed:
            raise ClipspmError(
                f"{len(failed)} of {len(jobs)} jobs failed, the first is {failed[0]}; run the same command "
                "again to continue where it stopped"
            )


def _last_word(error: Exception) -> str:
    """Return the last line of the log or trace that submitit quotes between dashes, else the message."""
    message, *quoted = re.split(r"\n-{10,}\n?", str(error))
    return (quoted[0].strip() if quoted else "").rpartition("\n")[2] or message
