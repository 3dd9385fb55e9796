"""Fixtures that several test modules of stage one share."""

import pytest

from tests.support.media import tiny_local_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_local_dir(tmp_path_factory.mktemp("model") / "tiny")
