"""The GPU script runs whole, on a CPU and small."""

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_every_part_is_measured() -> None:
    found = gpu.measure("cpu", gpu.TINY, minutes=30)
    wrong = {name: said for name, said in found.items() if isinstance(said, str)}
    assert not wrong
    assert found["cpu and device agree"]["same episodes"] and found["cpu and device agree"]["within 1e-3"]


def test_what_does_not_begin_in_time_is_named() -> None:
    found = gpu.measure("cpu", gpu.TINY, minutes=0)
    assert set(map(str, list(found.values())[2:])) == {"left out: no time"}
