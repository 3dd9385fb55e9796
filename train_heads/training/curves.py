"""Loggers of training curves."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from clipspm.cache.disk import append, reading, replacing
from clipspm.errors import UsageError
from clipspm.train_heads.config import Service


class MetricLogger(Protocol):
    """Records numbers by step; ``rewind`` drops what was logged after the step that training resumes from."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def rewind(self, step: int) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """Writes one JSON object per line: ``{"step": ..., name: value, ...}``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, values: Mapping[str, float]) -> None:
        append(self.path, (json.dumps({"step": step, **values}) + "\n").encode())

    def rewind(self, step: int) -> None:
        if not os.path.lexists(self.path):
            return
        kept = []
        with reading(self.path):
            lines = self.path.read_bytes().splitlines(keepends=True)
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, TypeError, KeyError, RecursionError):  # cut short by the interruption
                break
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(kept))

    def close(self) -> None:
        pass


class TensorBoard:
    """Writes event files to a ``tensorboard`` folder of the run."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._open = lambda step: SummaryWriter(str(folder), purge_step=step)
        self._writer = self._open(None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        self._writer.close()
        self._writer = self._open(step + 1)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Sends curves to Weights & Biases, as a run with the name of the run's folder.

    What is logged again after a resume is the same to the bit, and dropped there.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        name = hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:16]
        self._run = wandb.init(
            project="clipspm", name=run.name, id=name, resume="allow", dir=str(run), config=dict(config)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def rewind(self, step: int) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """Sends curves to MLflow, as a run with the name of the run's folder."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise _missing("mlflow") from error
        self._client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment("clipspm")
        self._id = self._client.create_run(experiment.experiment_id, run_name=run.name).info.run_id
        for name, value in config.items():
            self._client.log_param(self._id, name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def rewind(self, step: int) -> None:
        pass

    def close(self) -> None:
        self._client.set_terminated(self._id)


def loggers(services: Sequence[Service], run: Path, config: Mapping[str, Any]) -> Iterator[MetricLogger]:
    """Open ``services`` for a run; :class:`UsageError` for one whose package is not installed."""
    for service in services:
        match service:
            case "tensorboard":
                yield TensorBoard(run / "tensorboard")
            case "wandb":
                yield WandB(run, config)
            case "mlflow":
                yield MLflow(run, config)


def _missing(extra: str) -> UsageError:
    return UsageError(f"--log-to {extra} needs the extra: pip install 'clipspm[{extra}]'")


class Several:
    """Passes every call on to each of ``loggers``."""

    def __init__(self, loggers: Sequence[MetricLogger]) -> None:
        self.loggers = loggers

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log(step, values)

    def rewind(self, step: int) -> None:
        for logger in self.loggers:
            logger.rewind(step)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()
