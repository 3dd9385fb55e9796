"""A run directory is never half of one thing and half of another: damage, kills, full disks, several at once."""

import errno
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clipspm.cache.checked import load_arrays, load_json, load_tensors
from clipspm.cache.disk import DiskFull, room_on, size_text, write_text
from clipspm.engines import EngineConfig
from clipspm.errors import ClipspmError
from clipspm.train_heads.doctor import Diagnosis, examine
from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.evaluation.result import load_evaluation
from clipspm.train_heads.experiments.ablate import ablate, plan_ablation
from clipspm.train_heads.experiments.compare import compare
from clipspm.train_heads.experiments.results import collect
from clipspm.train_heads.import_checkpoint import ImportedHead
from clipspm.train_heads.runs import IN_CONFIG, IN_RESULTS, HeadShape, Run, training_lock
from clipspm.train_heads.training.train import train
from tests.support.cli import assert_one_clear_line, clipspm
from tests.support.edits import as_before, edit_json
from tests.support.synthetic import fake_cache, real_cache, silent, tiny_config

CACHE = fake_cache()
CONFIG = tiny_config(episodes=16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    train(CACHE, CONFIG, run, log=silent)
    evaluate(run, CACHE, episodes=20, log=silent)
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def states(found: Diagnosis) -> dict[str, str]:
    return {file.name: file.state for file in found.files}


def leftovers(run: Path) -> list[str]:
    return [p.name for p in run.rglob("*.new")]


def weights(run: Path, name: str = "best") -> dict[str, torch.Tensor]:
    return load_file(run / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# digests


def content_of(file: Path) -> Any:
    if file.suffix == ".safetensors":
        arrays, facts, _ = load_tensors(file)
    elif file.suffix == ".npz":
        arrays, facts = load_arrays(file)[0], {}
    else:
        return load_json(file, IN_CONFIG if file.name == "config.json" else IN_RESULTS)[0]
    return facts, {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}


@pytest.mark.parametrize(
    "name", ["best.safetensors", "trainer.safetensors", "config.json", "results.json", "eval"]
)
def test_a_flipped_bit_is_refused_or_changes_nothing(run: Path, name: str) -> None:
    file = next(run.glob("eval-*.npz")) if name == "eval" else run / name
    data, before, rng = file.read_bytes(), content_of(file), random.Random(name)
    refused = 0
    for _ in range(60):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        try:
            assert content_of(file) == before
        except ClipspmError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 45


def test_a_whole_run_is_whole(run: Path) -> None:
    found = examine(run)
    assert found.ok and not found.advice
    assert set(states(found).values()) == {"whole"}
    assert {"config.json", "results.json", "best.safetensors", "metrics.jsonl"} <= states(found).keys()


def test_runs_of_earlier_versions_are_read(run: Path, whole: Path) -> None:
    as_before(run)
    found = evaluate(run, CACHE, episodes=20, log=silent)
    expected = load_evaluation(whole)
    assert np.array_equal(found.predictions["inductive"], expected.predictions["inductive"])
    as_before(run)
    assert load_evaluation(run).facts["selection"] == "val"
    diagnosis = examine(run)
    assert diagnosis.ok
    assert {
        states(diagnosis)[name]
        for name in ("config.json", "results.json", "best.safetensors", "metrics.jsonl")
    } == {"no digest"}


def test_doctor_names_each_file_and_what_to_do(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "notes.txt").touch()
    (run / ".results.json.0123abcd.new").touch()
    name = next(run.glob("eval-*.npz")).name
    (run / name).write_bytes(b"PK")
    found = examine(run)
    assert not found.ok
    assert states(found)["metrics.jsonl"] == "missing"
    assert states(found)["notes.txt"] == states(found)[".results.json.0123abcd.new"] == "unknown"
    assert states(found)[name] == "damaged"
    assert any("--test-episodes 20 --way 3 --shots 1 --queries 1 --seed 0" in line for line in found.advice)
    evaluate(run, CACHE, episodes=20, log=silent)  # as it advises
    assert states(examine(run))[name] == "whole"


def test_the_advice_for_damaged_weights_gives_them_back(run: Path, whole: Path) -> None:
    (run / "best.safetensors").write_bytes(b"")
    (advice,) = examine(run).advice
    assert advice.startswith("remove ")
    for name in advice.partition(" and train")[0].split()[1:]:
        (run / name).unlink()
    train(CACHE, None, run, resume=True, log=silent)
    assert same(weights(run), weights(whole))


def test_the_advice_for_damaged_results_gives_them_back(run: Path, whole: Path) -> None:
    edit_json(run / "results.json", lambda content: content.update(selection="none"))
    (run / "results.json").write_text((run / "results.json").read_text().replace('"version"', '"versiom"'))
    (advice,) = examine(run).advice
    assert advice.startswith("remove results.json, write it again")
    (run / "results.json").unlink()
    train(CACHE, None, run, resume=True, log=silent)
    one, two = (Run.open(path).results() for path in (run, whole))
    assert one["files"] == two["files"] and one["selection"] == two["selection"]


def test_other_weights_are_not_taken_for_those_of_the_run(run: Path, tmp_path: Path) -> None:
    train(CACHE, tiny_config(episodes=16, seed=1), tmp_path / "other", log=silent)
    shutil.copy(tmp_path / "other" / "best.safetensors", run)
    with pytest.raises(ClipspmError, match=r"best\.safetensors is not the one that training ended with"):
        evaluate(run, CACHE, episodes=20, log=silent)
    (run / "best.safetensors").unlink()  # nor the last for the best
    with pytest.raises(ClipspmError, match=r"cannot read .*best\.safetensors: No such file"):
        evaluate(run, CACHE, episodes=20, log=silent)


def test_an_edited_configuration_says_how_to_train_with_it(run: Path) -> None:
    (run / "config.json").write_text((run / "config.json").read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ClipspmError, match=r"was changed after it was written.*--config .*config\.json"):
        Run.open(run)
    (run / "config.json").write_text(
        json.dumps(json.loads((run / "config.json").read_text().replace('"seed": 1', '"seed": 0')))
    )
    Run.open(run)  # laid out otherwise, it says the same


def test_a_cell_without_its_weights_is_whole(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"heads": ("prototype",), "episodes": 20, "log": silent, "out_dir": tmp_path}
    for keep in (True, False):
        result = ablate(CACHE, CONFIG, keep_weights=keep, **asked)
        for row in result.rows:
            assert examine(row.cells[0]).ok
        shutil.rmtree(tmp_path / "cells")


# a full disk, and kills, at every moment


class _Fails:
    """``Path.replace`` that finds the disk full at its call number ``at``."""

    def __init__(self, at: int) -> None:
        self.at, self.calls, self.real = at, 0, Path.replace

    def __get__(self, path: Path, kind: type) -> Callable[[Path], Path]:
        def replace(target: Path) -> Path:
            self.calls += 1
            if self.calls == self.at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.real(path, target)

        return replace


def test_training_goes_on_after_a_full_disk_at_any_write(tmp_path: Path, whole: Path) -> None:
    count = 0
    while True:
        count, path = count + 1, tmp_path / str(count)
        with pytest.MonkeyPatch.context() as patch:
            fails = _Fails(count)
            patch.setattr(Path, "replace", fails)
            try:
                train(CACHE, CONFIG, path, log=silent)
                break
            except DiskFull as error:
                assert str(path) in str(error) and "the disk is full" in str(error)
                if (path / "config.json").exists():
                    assert f"--resume --run-dir {path}" in str(error)
        assert not leftovers(path)
        if (path / "config.json").exists():
            assert examine(path).ok
        train(CACHE, CONFIG, path, resume=True, log=silent)
        assert same(weights(path), weights(whole)) and same(weights(path, "last"), weights(whole, "last"))
        assert (path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        assert examine(path).ok
    assert count > 6


def test_scores_are_never_mixed_after_a_full_disk_at_any_write(run: Path, whole: Path) -> None:
    count, expected = 0, load_evaluation(whole)
    while True:
        count += 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", _Fails(count))
            try:
                evaluate(run, CACHE, episodes=20, protocols=("inductive",), shuffle_time=None, log=silent)
                break
            except DiskFull as error:
                assert "run the same command again" in str(error)
        assert not leftovers(run)
        assert examine(run).ok
        assert load_evaluation(run).facts == expected.facts
    assert count > 2


def test_an_import_leaves_nothing_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = tiny_config()
    built: Any = HeadShape(16, 8, {}).build(config)
    head = ImportedHead(tmp_path / "file", "hmdb51", built, {}, config)
    for count in (1, 2, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", _Fails(count))
            with pytest.raises(DiskFull):
                head.save(tmp_path / "run")
        assert not (tmp_path / "run").exists()
    head.save(tmp_path / "run")
    assert examine(tmp_path / "run").ok


def test_a_file_that_a_user_names_is_whole_or_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "table.csv"
    file.write_text("before")
    (tmp_path / "link.csv").symlink_to(file)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", _Fails(1))
        with pytest.raises(DiskFull, match=r"cannot write .*table\.csv: the disk is full"):
            write_text(file, "after")
    assert file.read_text() == "before" and not leftovers(tmp_path)
    write_text(tmp_path / "link.csv", "after")
    assert file.read_text() == "after" and (tmp_path / "link.csv").is_symlink()
    write_text(Path(os.devnull), "x")
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_tables_for_a_full_disk(run: Path, tmp_path: Path) -> None:
    found = clipspm("results", run, "--format", "csv", "--out", "/dev/full", home=tmp_path)
    assert_one_clear_line(found, "/dev/full: the disk is full")
    folder = clipspm("results", run, "--out", tmp_path, home=tmp_path)
    assert_one_clear_line(folder, "is a folder", code=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of files")
def test_a_limit_of_file_sizes_is_said(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises(
            DiskFull, match=r"cannot write .*\.safetensors: the disk is full for a file of that size"
        ):
            train(CACHE, CONFIG, tmp_path / "run", log=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1_234, "1.2 kB"), (999_999, "1.0 MB"), (7.3e12, "7.3 TB")],
)
def test_sizes_have_a_unit_that_fits(count: float, said: str) -> None:
    assert size_text(count) == said


def test_other_mistakes_of_a_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), room_on(tmp_path):
        raise PermissionError(errno.EACCES, "no")


# several processes


def test_a_second_training_is_told_who_trains(tmp_path: Path) -> None:
    me = rf"process {os.getpid()} on {socket.gethostname()}, started \d+ s ago"
    with training_lock(tmp_path / "run"), pytest.raises(ClipspmError, match=f"run is being trained by {me}"):
        train(CACHE, CONFIG, tmp_path / "run", log=silent)
    train(CACHE, CONFIG, tmp_path / "run", log=silent)


@pytest.mark.parametrize("devices", [(), ("cpu", "cpu")])
def test_a_second_ablation_is_told_who_trains(tmp_path: Path, devices: tuple[str, ...]) -> None:
    cache = real_cache(tmp_path / "c.zarr", CACHE)
    asked: dict[str, Any] = {
        "heads": ("prototype",),
        "episodes": 20,
        "log": silent,
        "out_dir": tmp_path / "out",
    }
    asked["engine"] = EngineConfig(devices=devices) if devices else None
    me = rf"process {os.getpid()} on {socket.gethostname()}, started \d+ s ago"
    cell = plan_ablation(cache, CONFIG, **asked).cells["full"][0]
    with training_lock(cell.path), pytest.raises(ClipspmError, match=f"{cell.path} is being trained by {me}"):
        ablate(cache, CONFIG, **asked)
    from clipspm.train_heads.experiments.ablate import _ablation_lock

    with (
        _ablation_lock(tmp_path / "out"),
        pytest.raises(ClipspmError, match=f"out is being done by {me}.*--out"),
    ):
        ablate(cache, CONFIG, **asked)


def test_evaluations_at_once_keep_each_other(run: Path) -> None:
    def one(seed: int) -> str:
        return evaluate(
            run, CACHE, episodes=20, seed=seed % 3, protocols=(PROTOCOLS[seed % 2],), log=silent
        ).name

    with ThreadPoolExecutor(6) as pool:
        names = set(pool.map(one, range(6)))
    assert names <= set(Run.open(run).results()["evaluations"])
    for name in names:
        found = load_evaluation(run, name)
        assert found.protocols == PROTOCOLS
        assert found.facts["episode_hash"] == name
    assert examine(run).ok


PROTOCOLS = ("inductive", "transductive")


def test_tables_are_whole_while_a_run_is_scored(run: Path, whole: Path) -> None:
    expected = collect([whole]).scores[0].accuracies
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(
            lambda: [evaluate(run, CACHE, episodes=20, log=silent, seed=i % 2) for i in range(3)]
        )
        while not writing.done():
            found = collect([run])
            assert not found.skipped
            assert any(np.array_equal(score.accuracies, expected) for score in found.scores)
            compare(run, whole)
        writing.result()


def test_scores_of_weights_that_training_replaced_meanwhile_are_not_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipspm.train_heads.evaluation import evaluate as module

    def ends(*args: Any, **kwargs: Any) -> Any:
        with Run.open(run).editing() as content:
            content["files"]["best.safetensors"] = "0" * 64
        return real(*args, **kwargs)

    real = module.guard_labels
    monkeypatch.setattr(module, "guard_labels", ends)
    before = list(Run.open(run).results()["evaluations"])
    with pytest.raises(ClipspmError, match="ended during the evaluation: run the same command again"):
        evaluate(run, CACHE, episodes=20, seed=7, log=silent)
    assert list(Run.open(run).results()["evaluations"]) == before


def test_the_other_protocol_of_other_weights_is_not_kept(run: Path) -> None:
    evaluate(run, CACHE, episodes=20, protocols=("inductive",), log=silent)
    assert load_evaluation(run).protocols == PROTOCOLS

    def other(content: dict[str, Any]) -> None:
        for facts in content["evaluations"].values():
            facts["weights_sha256"] = "0" * 64

    edit_json(run / "results.json", other, digest=True)
    evaluate(run, CACHE, episodes=20, protocols=("inductive",), log=silent)
    assert load_evaluation(run).protocols == ("inductive",)
