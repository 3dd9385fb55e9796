"""What was measured is kept, whoever measures at the same time, and nothing fails where it cannot be."""

import json
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from clipspm.cache.disk import DiskFull, replacing, write_atomically
from clipspm.extract.measured import recall, remember
from tests.support.processes import remember_many


def test_nothing_is_lost_when_many_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    with ProcessPoolExecutor(10, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(remember_many, range(10)))
    assert found == [["bf16"] * 40] * 10
    kept = json.loads((tmp_path / "home" / "precision.json").read_text())
    assert kept == {f"{p}-{i}": "bf16" for p in range(10) for i in range(40)}


def test_the_first_one_counts_and_what_is_no_precision_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    assert recall("a") is None
    assert (remember("a", "bf16"), remember("a", "fp16"), recall("a")) == ("bf16", "bf16", "bf16")
    for damaged in ("{", "[]", '{"a": "fp8", "b": 3}'):
        (tmp_path / "precision.json").write_text(damaged)
        assert recall("a") is None
        assert remember("a", "fp32") == "fp32" == recall("a")


@pytest.mark.timeout(20)
def test_what_is_no_file_of_measurements_hangs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    file = tmp_path / "precision.json"
    os.mkfifo(file)
    assert recall("a") is None
    file.unlink()
    file.write_text("[" * 100_000)
    assert remember("a", "bf16") == "bf16" == recall("a")


def test_a_home_that_cannot_be_written_to_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        raise DiskFull(path)

    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    with monkeypatch.context() as small:
        small.setattr("clipspm.extract.measured.write_json", full)
        assert remember("a", "bf16") == "bf16"
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "file" / "home"))
    assert remember("a", "bf16") == "bf16"
    assert recall("a") is None


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    contents = [bytes([i]) * 5000 for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda data: write_atomically(path, data), contents))
    assert path.read_bytes() in contents
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert path.read_text() == "1"  # the outer block ends last
    with pytest.raises(TypeError), replacing(path) as aside:
        aside.write_text(None)  # type: ignore[arg-type]
    assert path.read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]
