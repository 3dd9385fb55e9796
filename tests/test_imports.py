"""What importing costs and says: no deprecated call of ours, and nothing heavy where it is not needed."""

import json

import pytest

from tests.support.interpreters import python


def loaded_by(*modules: str) -> set[str]:
    """The top-level packages that importing ``modules`` loads."""
    imports = "\n".join(f"import {name}" for name in modules)
    return set(json.loads(python(f"{imports}\nimport json, sys; print(json.dumps([*sys.modules]))")))


@pytest.mark.slow
def test_no_module_of_ours_calls_what_is_deprecated() -> None:
    found = python(
        "import importlib, pkgutil, warnings, clipspm\n"
        "for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):\n"
        "    warnings.filterwarnings('error', category=kind, module=r'clipspm(\\.|$)')\n"
        "names = [m.name for m in pkgutil.walk_packages(clipspm.__path__, 'clipspm.')]\n"
        "for name in names:\n"
        "    if name.split('.')[1] not in ('tests', 'benchmarks'):\n"
        "        importlib.import_module(name)\n"
        "        print(name)"
    )
    assert {"clipspm.cli", "clipspm.extract.decode", "clipspm.train_heads.training"} <= set(found.split())


@pytest.mark.parametrize(
    "modules",
    [
        ("clipspm.extract.decode_pool", "clipspm.extract.views"),  # every decoding process
        ("clipspm.errors",),
    ],
)
def test_decoding_processes_load_no_more_than_they_need(modules: tuple[str, ...]) -> None:
    assert not loaded_by(*modules) & {"torch", "zarr", "h5py", "rich", "typer", "open_clip"}


@pytest.mark.parametrize("module", ["clipspm.cli", "clipspm.extract.config", "clipspm.extract.datasets"])
def test_what_is_said_without_work_is_said_without_waiting(module: str) -> None:
    assert not loaded_by(module) & {"torch", "zarr", "h5py", "av", "numpy", "open_clip"}


def test_planning_a_head_does_not_load_the_compiler() -> None:
    """Arithmetic on the meta device imports it; every command that opens a run would wait."""
    code = """
import sys, torch
from clipspm.train_heads import build_head, resolve_config
for recipe in ("default", "official"):
    config = resolve_config(recipe=recipe)
    with torch.device("meta"):
        build_head(config.head, dim=16, frames=8, layer_dims={"8:mean": 16}, config=config.head_config)
print("torch._dynamo" in sys.modules)
"""
    assert python(code).strip() == "False"
