"""What a measurement was made with, and how differences are printed."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import clipspm


def machine() -> dict[str, Any]:
    """Processor, cores, versions and the date (UTC), for the results' files."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "clipspm": clipspm.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def signed(mean: float, low: float, high: float) -> str:
    """A difference with its interval, in points."""
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
