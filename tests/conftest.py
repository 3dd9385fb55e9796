"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.support")

# before torch is imported, here and in processes that tests start: with tensors this small, threads that spin while they
# wait cost more than they gain, ten times as much where the machine is busy
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real clips, weights and recorded tensors: ``$CLIPSPM_SHARED``, default ``../shared``."""
    default = Path(__file__).resolve().parents[1] / "../shared"
    path = Path(os.environ.get("CLIPSPM_SHARED") or default).resolve()
    if not path.is_dir():
        pytest.skip(f"no shared test data at {path} (set CLIPSPM_SHARED)")
    return path
