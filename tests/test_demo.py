"""The whole pipeline on the embedded demo, in its short form."""

import json
from pathlib import Path

import pytest

from tests.support.cli import clipspm


@pytest.mark.slow  # .ci/run runs the demo itself
def test_the_demo_beats_the_order_blind_prototype(tmp_path: Path) -> None:
    result = clipspm("demo", "--quick", "--json", "--out", tmp_path / "demo", home=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found)[-1] == "summary"
    summary = found["summary"]
    assert set(summary) == {"full", "prototype", "margin", "interval"}
    assert 0.1 < summary["prototype"] < 0.4  # order-blind: near chance, 20 %
    assert summary["interval"][0] > 0
    assert abs(summary["full"] - summary["prototype"] - summary["margin"]) < 1e-9
    assert found["margins"]["full, frames shuffled"]["low"] > 0
    again = clipspm("demo", "--quick", "--json", "--out", tmp_path / "demo", home=tmp_path)
    assert json.loads(again.stdout) == found  # nothing is rendered, encoded or trained again
    assert "step" not in again.stderr
