"""What is found of this machine."""

import json
from pathlib import Path

import pytest

import clipspm as package
from clipspm import machine
from tests.support.cli import clipspm


def test_what_is_here_is_told(tmp_path: Path) -> None:
    result = clipspm("env", "--json", home=tmp_path)
    found = json.loads(result.stdout)
    assert found["clipspm"] == package.__version__
    assert found["devices"][0]["name"] == "cpu"
    assert found["decoders"]["av"]
    assert found["home"] == {"path": str(tmp_path), "free": found["home"]["free"]}
    assert "tiny_clip" in found["encoders"][0]["where"]
    assert "torch uses" in clipspm("env", home=tmp_path).stdout


def test_what_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "torch>=2.6",
        'nothing-of-the-kind>=1 ; extra == "ray"',
        "no_such_decoder>=3.0; sys_platform == 'plan9'",
        'pytest; extra == "test"',
        'clipspm[slurm]; extra == "test"',
    ]
    monkeypatch.setattr(machine, "requires", lambda name: lines)
    packages = machine.described()["packages"]
    assert [one["name"] for one in packages] == ["torch", "nothing-of-the-kind"]
    table = machine.tables({**machine.described(), "packages": packages})[1]
    assert table.rows[1] == ("nothing-of-the-kind", "missing", "pip install 'clipspm[ray]'")


def test_downloaded_encoders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    whole = tmp_path / "models--laion--CLIP" / "snapshots" / "abc"
    whole.mkdir(parents=True)
    (whole / "open_clip_model.safetensors").touch()
    (tmp_path / "models--begun--only" / "snapshots").mkdir(parents=True)
    assert [one["name"] for one in machine.described()["encoders"]][1:2] == ["laion/CLIP"]
