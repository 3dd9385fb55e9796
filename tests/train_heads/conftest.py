"""Fixtures that several test modules of stage two share."""

from pathlib import Path

import pytest

from tests.support.golden import FILES, Golden


@pytest.fixture(scope="module", params=FILES)
def golden(request: pytest.FixtureRequest, shared_dir: Path) -> Golden:
    return Golden(shared_dir / "golden" / f"{request.param}.safetensors")
