"""Where work is done: in this process, on several devices, on a Slurm cluster, on Ray.

An engine maps the items of a task over workers and yields results as they come, in any order; what an item
is, and what is done with it, it does not know. Tasks must be such that doing an item twice does no harm.
"""

from clipspm.engines.base import ENGINES, Engine, EngineConfig, Task, Work, make_engine

__all__ = ["ENGINES", "Engine", "EngineConfig", "Task", "Work", "make_engine"]
