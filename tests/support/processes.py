"""What tests have other processes do: these find it by this module's name."""

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipspm.extract.measured import remember
from clipspm.extract.views import ClipSettings, load_clip


def remember_many(process: int) -> list[str]:
    """Note 40 measurements from ten threads at once."""
    with ThreadPoolExecutor(10) as pool:
        return list(pool.map(lambda i: remember(f"{process}-{i}", "bf16"), range(40)))


def memory_taken(path: Path, settings: ClipSettings) -> int:
    """By how many bytes reading a clip raises the most memory that this process ever had."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_clip(path, "x", settings)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
