"""Training without validation classes: what is set aside, and that it chooses the weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipspm.errors import UsageError
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.places import default_run_dir
from clipspm.train_heads.request import fit_to_cache
from clipspm.train_heads.resume import unfinished_run
from clipspm.train_heads.runs import HeadShape, Run, training_lock
from clipspm.train_heads.training import loop
from clipspm.train_heads.training.hold_out import set_aside
from clipspm.train_heads.training.train import train
from tests.support.edits import edit_json
from tests.support.synthetic import fake_cache, tiny_config


def pool_of(sizes: list[int]) -> Pool:
    names = tuple(f"class {c:02}" for c in range(len(sizes)))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    ids = tuple(f"{names[c]}/{i:03}" for i, c in enumerate(labels))
    rows = np.arange(len(ids))
    return Pool("fake", "train", names, ids, labels, np.array(sizes), rows, np.arange(len(sizes)))


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 30), min_size=2, max_size=30),
    way=st.integers(2, 5),
    shot=st.integers(1, 5),
    queries=st.integers(1, 4),
)
def test_what_is_left_gives_the_training_episodes(
    sizes: list[int], way: int, shot: int, queries: int
) -> None:
    pool = pool_of(sizes)
    found = set_aside(pool, way=way, shot=shot, queries=queries)
    if found is None:
        return
    selection, held = found
    left, out = pool.part(~held), pool.part(held)
    assert set(left.ids) | set(out.ids) == set(pool.ids)
    assert not set(left.ids) & set(out.ids)
    assert len(out.names) >= 2
    assert out.smallest()[1] >= 2
    assert len(left.names) >= way
    if selection == "held-out classes":
        assert not set(left.names) & set(out.names)
        assert len(left.names) >= 8
    else:
        assert left.names == out.names == pool.names
        assert left.smallest()[1] >= shot + queries


def test_the_choice_depends_on_names_only() -> None:
    pool = pool_of([9] * 12)
    held = set_aside(pool, way=5, shot=1, queries=2)
    more = set_aside(pool, way=3, shot=3, queries=4)
    assert held is not None
    assert more is not None
    assert held[0] == "held-out classes"
    assert (held[1] == more[1]).all()


def test_a_part_of_a_bank_is_what_it_says() -> None:
    bank = Data(fake_cache({"train": 5}), "cpu").bank("train")
    keep = bank.pool.labels % 2 == 0
    keep[0] = False
    part = bank.part(keep)
    assert part.pool.names == bank.pool.names[::2]
    for row, video in enumerate(part.pool.ids):
        whole = bank.pool.ids.index(video)
        assert (part._features["final"][row] == bank._features["final"][whole]).all()  # type: ignore[index]
        assert part.pool.names[part.pool.labels[row]] == bank.pool.names[bank.pool.labels[whole]]
    assert (part.text == bank.text[::2]).all()


def lines_of(classes: int, tmp_path: Path, **settings: object) -> tuple[list[str], Run]:
    said: list[str] = []
    cache = fake_cache({"train": classes, "test": 5})
    config = tiny_config(**{"way": 3, "queries": 2, **settings})
    train(cache, config, tmp_path / "run", log=said.append)
    return said, Run.open(tmp_path / "run")


def test_classes_are_held_out_where_there_are_many(tmp_path: Path) -> None:
    said, run = lines_of(12, tmp_path)
    assert any("2 training classes (" in line and "are set aside" in line for line in said)
    assert run.results()["selection"] == "held-out classes"
    assert run.which_weights() == "best"


def test_videos_are_held_out_where_classes_are_few(tmp_path: Path) -> None:
    said, run = lines_of(4, tmp_path, head_config={"pool": False})
    assert any("training videos are set aside" in line for line in said)
    assert run.results()["selection"] == "held-out videos"


def test_nothing_is_held_out_on_request_and_long_training_is_warned_of(tmp_path: Path) -> None:
    said, run = lines_of(12, tmp_path, hold_out=False, episodes=176, head_config={"pool": False})
    assert any(line.startswith("warning: ") and "--episodes 160" in line for line in said)
    assert run.results()["selection"] == "none"


def test_what_is_learned_needs_classes_that_did_not_train_it(tmp_path: Path) -> None:
    """Without any to give it a weight, it has none: the pool is used as it is."""
    said, run = lines_of(4, tmp_path)
    assert any("nothing is trained" in line for line in said)
    training = run.results()["training"]
    assert (training["steps"], run.results()["selection"]) == (0, "none")
    assert float(run.load_head().learned_weight) == 0


def test_training_stops_where_nothing_is_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.6, *[0.55] * 100])
    monkeypatch.setattr(loop.Trainer, "validate", lambda self: next(scores))
    said, run = lines_of(12, tmp_path, episodes=1600, val_every=16)
    training = run.results()["training"]
    assert (training["best_step"], training["steps"]) == (4, 24)  # two steps apart: the second, and ten more
    assert any("stopped early: held-out accuracy was best after 32 episodes" in line for line in said)


def test_runs_of_before_go_on_without_holding_out(tmp_path: Path) -> None:
    """Their ``config.json`` does not speak of it, and what would be held out has trained them already."""
    _, run = lines_of(12, tmp_path, hold_out=False)
    file = run.path / "config.json"
    edit_json(file, lambda content: content["config"].pop("hold_out"))
    assert Run.open(run.path).config.hold_out is False


def test_resuming_finds_runs_on_the_same_features_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    cache = fake_cache({"train": 5, "val": 5})
    data = Data(cache, "cpu")
    config = fit_to_cache(tiny_config(), data.pools, data.spec, lambda line: None)
    shape = HeadShape.of(data.spec.dims, 4)
    ours, other = (
        Run.create(default_run_dir(config, data), config, shape, data.described()) for _ in range(2)
    )
    edit_json(
        other.path / "config.json", lambda content: content["cache"].update(fingerprint="other features")
    )
    assert unfinished_run(config, data) == ours.path
    with training_lock(ours.path), pytest.raises(UsageError, match="nothing to resume"):
        unfinished_run(config, data)
    with pytest.raises(UsageError, match=r"is unfinished and differs \(there / here\): seed 0 / 3"):
        unfinished_run(replace(config, seed=3), data)


def test_two_that_ask_for_a_directory_get_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    data, config = Data(fake_cache({"train": 5})), tiny_config()
    assert default_run_dir(config, data) != default_run_dir(config, data)
