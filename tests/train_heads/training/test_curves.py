"""Services that training curves go to: what each is told, and what is said where its package is missing."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipspm.errors import UsageError
from clipspm.train_heads.config import parse_services
from clipspm.train_heads.training.curves import loggers


def test_services_are_named_and_joined() -> None:
    assert parse_services(" wandb,mlflow,wandb ") == ("wandb", "mlflow")
    assert parse_services("") == ()
    with pytest.raises(UsageError, match="--log-to wandbb: it must be one of tensorboard, wandb, mlflow"):
        parse_services("wandbb")


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line(service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, service, None)
    with pytest.raises(UsageError, match=rf"pip install 'clipspm\[{service}\]'"):
        list(loggers([service], tmp_path, {}))


def test_wandb_gets_the_run_and_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: said.append((step, values)), finish=lambda: said.append("finished")
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **how: said.append(how) or run))
    (logger,) = loggers(["wandb"], tmp_path, {"lr": 0.1})
    logger.log(3, {"loss": 1.5})
    logger.close()
    how = said[0]
    assert (how["name"], how["config"], how["resume"]) == (tmp_path.name, {"lr": 0.1}, "allow")
    assert said[1:] == [(3, {"loss": 1.5}), "finished"]
    list(loggers(["wandb"], tmp_path, {}))
    assert said[-1]["id"] == how["id"]
