"""Loggers of training curves."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from clipspm.cache.disk import append, reading, replacing
from clipspm.errors import UsageError


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
            raise UsageError("--tensorboard needs the extra: pip install 'clipspm[tensorboard]'") from error
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
