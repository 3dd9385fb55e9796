"""Engines: run work in this process, on several devices, on a Slurm cluster, or on Ray.

An engine maps the items of a task over workers and yields the results in the order they finish. It knows
nothing about the items. It may repeat an item after a failure, so tasks must be idempotent.
"""

from importlib.util import find_spec

from clipspm.engines.base import ENGINES, Engine, EngineConfig, EngineName, Task, Work
from clipspm.errors import UsageError

__all__ = ["ENGINES", "Engine", "EngineConfig", "Task", "Work", "check_installed", "make_engine"]

_PACKAGES = {"slurm": "submitit", "ray": "ray"}


def check_installed(config: EngineConfig) -> None:
    """Raise :class:`UsageError` if the engine's package is not installed, without importing it."""
    package = _PACKAGES.get(config.name)
    if package and find_spec(package) is None:
        raise _missing(config.name, f"no package {package}")


def _missing(name: EngineName, why: object) -> UsageError:
    return UsageError(f"--engine {name} needs the extra: pip install 'clipspm[{name}]' ({why})")


def make_engine(config: EngineConfig) -> Engine:
    """Create the engine that ``config`` names; raises :class:`UsageError` if its package is not installed."""
    try:
        if config.name == "slurm":
            from clipspm.engines.slurm import SlurmEngine

            return SlurmEngine(config)
        if config.name == "ray":
            from clipspm.engines.ray import RayEngine

            return RayEngine(config)
    except ImportError as error:
        raise _missing(config.name, error) from error
    from clipspm.engines.local import LocalEngine

    return LocalEngine(config)
