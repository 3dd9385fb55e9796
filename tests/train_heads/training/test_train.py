"""Training: no leak, exact resume, selection on validation classes, and errors in one line."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.config import TrainConfig, from_dict, recipe_names, resolve_config
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import EpisodeSpec, draw
from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.evaluation.leaks import guard_classes
from clipspm.train_heads.evaluation.predict import make_batch, predict
from clipspm.train_heads.heads.registry import HEADS, HeadEntry, build_head
from clipspm.train_heads.places import cache_title, default_run_dir
from clipspm.train_heads.runs import Run
from clipspm.train_heads.training import loop as trainer_module
from clipspm.train_heads.training.loop import Trainer
from clipspm.train_heads.training.optim import lr_at
from clipspm.train_heads.training.train import train
from tests.support.synthetic import FakeCache, LinearHead, fake_cache, silent, tiny_config

CACHE = fake_cache(views=2, frames=6)


@pytest.fixture(autouse=True)
def linear_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry also knows the small head of the tests."""
    monkeypatch.setitem(
        HEADS, "linear", HeadEntry("of the tests", "tests.support.synthetic:LinearHead", settings=None)
    )


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / f"{which}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    original = Trainer.step

    def step(self: Trainer, number: int) -> dict[str, float]:
        if number == steps:
            raise Interrupted
        return original(self, number)

    monkeypatch.setattr(Trainer, "step", step)


def interrupted(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, run: Path, steps: int) -> None:
    """Train, and die after ``steps`` steps."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, steps)
        with pytest.raises(Interrupted):
            train(CACHE, config, run, log=silent)


# resolving a configuration


def test_flags_win_over_file_over_preset_over_recipe(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lr: 1e-3\nshots: 3\nhead_config: {alpha: 0.5, slope: 0.9}\n")
    got = resolve_config(
        recipe="official", preset="ucf101", file=file, overrides={"shots": 2, "head_config": {"slope": 0.1}}
    )
    assert (got.optimizer, got.lr, got.shots) == ("adam", 1e-3, 2)
    assert (got.head_config["rho_v"], got.head_config["alpha"], got.head_config["slope"]) == (2, 0.5, 0.1)


def test_official_recipe_is_the_reference() -> None:
    plain = resolve_config(recipe="official", preset="hmdb51")
    assert (plain.optimizer, plain.betas, plain.lr, plain.weight_decay) == ("adam", (0.5, 0.999), 1e-5, 5e-5)
    assert (plain.schedule, plain.episodes, plain.protocol, plain.clip) == (
        "constant",
        20_000,
        "transductive",
        None,
    )
    full = resolve_config(recipe="official", preset="ssv2-full")
    assert (full.episodes, full.lr, full.weight_decay) == (100_000, 1.6e-5, 9.7e-4)
    small = resolve_config(recipe="official", preset="ssv2-small")
    assert (small.episodes, small.lr, small.weight_decay) == (100_000, 1.6e-5, 5e-5)
    assert not plain.head_config.get("consistency", False)
    assert resolve_config(recipe="paper").head_config["consistency"] is True


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_builds_a_head(recipe: str) -> None:
    config = resolve_config(recipe=recipe, overrides={"head_config": {"head_width": 8, "ffn_width": 8}})
    head = build_head(config.head, dim=16, frames=4, config=config.head_config)
    assert head.trainable


def test_preset_follows_the_data_set_if_there_is_one() -> None:
    assert resolve_config(dataset="ucf101").preset == "ucf101"
    assert resolve_config(dataset="folder").preset == "hmdb51"


def test_saved_configuration_resolves_to_itself(tmp_path: Path) -> None:
    config = resolve_config(preset="kinetics100", overrides={"lr": 3e-4, "shots": 5})
    (tmp_path / "c.json").write_text(json.dumps({"config": config.as_dict(), "version": "x"}))
    assert resolve_config(file=tmp_path / "c.json") == config
    assert from_dict(config.as_dict()) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("shot: 3", r"unknown setting 'shot' in .*did you mean shots"),
        ("lr: fast", r"setting lr in .*: found 'fast'; needed a number"),
        ("way: 2.5", "needed a whole number"),
        ("shuffle_time: 1", "needed true or false"),
        ("optimizer: sgd", "needed one of adam, adamw"),
        ("recipe: offical", "unknown recipe 'offical'; did you mean official"),
        ("preset: hmdb", "unknown preset 'hmdb'; did you mean hmdb51"),
        ("head: clip-smp", "unknown head 'clip-smp'; did you mean clip-spm"),
        ("way: 1", "way is 1; it must be at least 2"),
        ("- 3", "holds no settings"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistake_in_a_config_file_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        resolve_config(file=file)
    assert "\n" not in str(caught.value)


def test_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml is no configuration: No such file"):
        resolve_config(file=tmp_path / "none.yaml")


def test_unknown_setting_of_the_head_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="colour"):
        train(CACHE, tiny_config(head_config={"colour": 1}), tmp_path / "r", log=silent)
    assert not (tmp_path / "r").exists()


# leaks


def test_training_reads_no_test_row_and_no_test_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    original = FeatureBank.read.__func__

    def watch(cls: type, pool: Pool, *args: Any, **kwargs: Any) -> FeatureBank:
        opened.append(pool.split)
        return original(cls, pool, *args, **kwargs)

    monkeypatch.setattr(FeatureBank, "read", classmethod(watch))
    train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)
    assert opened == ["train", "val"]


def test_test_features_do_not_change_training(tmp_path: Path) -> None:
    array = CACHE.arrays["final"].copy()
    array[[v.split == "test" for v in CACHE.good]] = np.nan
    poisoned = replace(CACHE, arrays={"final": array})
    config = tiny_config(episodes=16)
    train(CACHE, config, tmp_path / "a", log=silent)
    train(poisoned, config, tmp_path / "b", log=silent)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_planted_test_class_in_the_training_bank_trips_the_guard() -> None:
    bank = Data(CACHE, "cpu").bank("train")
    leaky = replace(bank.pool, names=("test class 00", *bank.pool.names[1:]))
    bank.pool = leaky
    with pytest.raises(ClipspmError, match="leak: train bank holds class 'test class 00' of split 'test'"):
        guard_classes(CACHE.class_splits, bank)
    with pytest.raises(ClipspmError, match="leak"):
        guard_classes(CACHE.class_splits, Data(CACHE, "cpu").bank("test"))


def test_scoring_hands_the_head_no_query_labels() -> None:
    seen: list[tuple[Any, ...]] = []

    class Spy(LinearHead):
        def run(self, *given: Any) -> Any:  # type: ignore[override]
            seen.append(given)
            return super().run(*given)

    bank = Data(CACHE, "cpu").bank("val")
    episodes = draw(EpisodeSpec(dataset="fake", split="val"), bank.pool, 2)
    predict(Spy(dim=16, frames=4), bank, episodes, frames=4, protocol="inductive")
    assert [len(given) for given in seen] == [1]
    names = {field.name for field in fields(seen[0][0])}
    assert names == {"support", "query", "support_labels", "text", "protocol"}


def test_training_hands_the_head_its_base_classes() -> None:
    bank = Data(CACHE, "cpu").bank("train")
    episodes = draw(EpisodeSpec(dataset="fake", split="train", queries=2), bank.pool, 3)
    batch = make_batch(bank, episodes, 4, torch.Generator().manual_seed(0))
    assert batch.base is not None
    rows = batch.episode.text.gather(1, batch.query_labels[..., None].expand(-1, -1, 16))
    assert torch.equal(batch.base.text[batch.base.query], rows)


# the loop


def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    whole = train(CACHE, config, tmp_path / "whole", log=silent)
    interrupted(monkeypatch, config, tmp_path / "parts", 5)  # checkpoint at step 4: the fifth is done again
    torch.rand(7)  # the global random state is somewhere else
    parts = train(CACHE, None, tmp_path / "parts", resume=True, log=silent)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert same(weights(tmp_path / "whole", "best"), weights(tmp_path / "parts", "best"))
    assert (whole.val_accuracy, whole.best_step) == (parts.val_accuracy, parts.best_step)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    steps = [[json.loads(line)["step"] for line in text.splitlines()] for text in lines]
    assert steps == [[2, 4, 6], [2, 4, 6]]


def test_same_seed_same_weights_and_other_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(CACHE, tiny_config(seed=seed, episodes=16), tmp_path / name, log=silent)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_training_leaves_the_callers_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)
    assert torch.equal(torch.rand(3), expected)


def test_training_learns(tmp_path: Path) -> None:
    cache = fake_cache({"train": 12, "val": 6}, noise=1.5)
    config = tiny_config(
        head="linear", episodes=1600, batch=16, val_every=400, val_episodes=200, lr=3e-3, way=5
    )
    train(cache, config, tmp_path / "r", log=silent)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]


def test_run_directory_holds_what_it_says(tmp_path: Path) -> None:
    result = train(CACHE, tiny_config(), tmp_path / "r", log=silent)
    names = {p.name for p in (tmp_path / "r").iterdir() if not p.name.startswith(".")}
    chosen_on = Run.open(tmp_path / "r").results()["training"]["val_episodes"]["hash"]
    assert names == {
        "config.json",
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "trainer.safetensors",
        "results.json",
        f"episodes-{chosen_on}.npz",
    }
    run = Run.open(tmp_path / "r")
    assert run.config == result.config
    facts = json.loads((tmp_path / "r/results.json").read_text())
    assert facts["selection"] == "val"
    assert facts["training"]["val_accuracy"] == result.val_accuracy
    best = run.load_head("best").state_dict()
    assert same(best, weights(tmp_path / "r", "best"))


def test_best_checkpoint_is_the_best_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(Trainer, "validate", lambda self: next(scores))
    result = train(CACHE, tiny_config(head_config={"pool": False}), tmp_path / "r", log=silent)
    assert (result.best_step, result.val_accuracy) == (4, 0.9)
    assert not same(weights(tmp_path / "r", "best"), weights(tmp_path / "r", "last"))


@pytest.mark.parametrize("val", [0, 1])
def test_without_validation_classes_the_last_weights_are_kept(tmp_path: Path, val: int) -> None:
    said: list[str] = []
    cache = fake_cache({"train": 5, "val": val, "test": 3})
    config = tiny_config(hold_out=False, head_config={"pool": False})
    result = train(cache, config, tmp_path / "r", log=said.append)
    assert (result.selection, result.val_accuracy) == ("none", None)
    assert Run.open(tmp_path / "r").which_weights() == "last"
    assert len([line for line in said if line.startswith("warning")]) == 1


def test_validation_uses_as_many_ways_as_there_are_classes(tmp_path: Path) -> None:
    cache = fake_cache({"train": 5, "val": 3, "test": 3})
    result = train(cache, tiny_config(way=5), tmp_path / "r", log=silent)
    assert result.selection == "val"


def test_tunable_buffers_are_chosen_on_validation_classes_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def score(head: LinearHead, bank: FeatureBank, *args: Any, **kwargs: Any) -> np.ndarray:
        assert bank.pool.split == "val"
        tried.append(float(head.sharpness))
        right = float(head.sharpness) == 2.0
        return np.repeat([[0, 1, 2]], 10, 0) if right else np.full((10, 3), 1)

    monkeypatch.setattr("clipspm.train_heads.evaluation.predict.predict", score)
    result = train(CACHE, tiny_config(head="linear"), tmp_path / "r", log=silent)
    assert result.tuned == {"sharpness": 2.0}
    assert tried == [1.0, 0.5, 2.0]
    assert weights(tmp_path / "r", "best")["sharpness"] == 2.0


def test_head_with_nothing_to_train_is_saved_at_once(tmp_path: Path) -> None:
    result = train(CACHE, tiny_config(head="prototype"), tmp_path / "r", log=silent)
    assert result.steps == 0
    assert result.val_accuracy is not None
    assert Run.open(tmp_path / "r").finished


def test_shallow_layer_reaches_the_head(tmp_path: Path) -> None:
    cache = fake_cache(frames=6, extra_layers={"3": 7})
    config = tiny_config(episodes=16, head_config={"shallow_layer": "3"})
    result = train(cache, config, tmp_path / "r", log=silent)
    assert {*result.head.layers} == {"final", "3"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_trains_and_resumes(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(precision=precision, head="linear")
    train(CACHE, config, tmp_path / "whole", log=silent)
    interrupted(monkeypatch, config, tmp_path / "parts", 3)
    train(CACHE, config, tmp_path / "parts", resume=True, log=silent)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_loss_that_is_not_finite_stops_with_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(self: LinearHead, output: Any, labels: torch.Tensor) -> torch.Tensor:
        return output.logits.sum((1, 2)) * float("nan")

    monkeypatch.setattr(LinearHead, "episode_loss", explode)
    with pytest.raises(ClipspmError, match="loss is nan at step 1 of 6"):
        train(CACHE, tiny_config(head="linear"), tmp_path / "r", log=silent)


@pytest.mark.parametrize("batch", [4, 16])
def test_loss_counts_sixteen_episodes_whatever_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(
        LinearHead, "episode_loss", lambda self, output, labels: 0 * output.logits.sum((1, 2)) + 2
    )
    train(CACHE, tiny_config(head="linear", batch=batch, episodes=16), tmp_path / "r", log=silent)
    lines = (tmp_path / "r/metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["loss"] for line in lines} == {32.0}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_over_time(schedule: str) -> None:
    config = tiny_config(lr=1.0, warmup=0.1, schedule=schedule)
    rates = [lr_at(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    if schedule == "constant":
        assert set(rates[10:]) == {1.0}
    else:
        assert rates[10] == 1.0
        assert rates[55] == pytest.approx(0.5)
        assert rates[99] < 0.01
        assert sorted(rates[10:], reverse=True) == rates[10:]


# requests that cannot be met


def request(cache: FakeCache, tmp_path: Path, said: list[str] | None = None, **changes: Any) -> TrainConfig:
    config = replace(tiny_config(episodes=16, head="linear"), queries=None, **changes)
    log = said.append if said is not None else silent
    return train(cache, config, tmp_path / "r", log=log).config


def test_queries_shrink_to_the_smallest_class_and_say_so(tmp_path: Path) -> None:
    said: list[str] = []
    cache = fake_cache({"train": 4, "val": 3}, per_class=[8, 4, 8, 8, 5, 5, 5])
    assert request(cache, tmp_path, said, shots=2).queries == 2
    expected = "2 queries per class instead of 4: class 'train class 01' (train) has 4 videos for 2 shots"
    assert expected in said


def test_default_queries_are_four(tmp_path: Path) -> None:
    assert request(fake_cache({"train": 4}), tmp_path).queries == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 3, "queries": None}, r"'train class 01' \(train\) has 3 usable videos, 3 shots \+ 1 queries need 4"),
        ({"queries": 3}, r"'train class 01' \(train\) has 3 usable videos, 1 shots \+ 3 queries need 4"),
        ({"way": 9}, "9-way episodes need 9 classes, the train split has 4"),
        ({"frames": 5}, "5 frames asked for, the cache holds 4"),
        ({"shots": 2}, r"'val class 00' \(val\) has 2 usable videos, 2 shots \+ 1 queries need 3"),
        ({"device": "cuda:99"}, "'cuda:99' is not available"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)  # fmt: skip
def test_impossible_request_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    cache = fake_cache({"train": 4, "val": 2}, per_class=[8, 3, 8, 8, 2, 8])
    config = replace(tiny_config(head="linear"), queries=1, way=3)
    with pytest.raises(UsageError, match=message):
        train(cache, replace(config, **changes), tmp_path / "r", log=silent)
    assert not (tmp_path / "r").exists()


def test_test_split_too_small_for_the_request_is_said_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    request(fake_cache({"train": 4, "test": 2}), tmp_path, said)
    expected = "cannot be tested as it is trained: fake: 3-way episodes need 3 classes, the test split has 2"
    assert any(expected in line for line in said)


def test_run_directory_is_not_overwritten(tmp_path: Path) -> None:
    train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)
    with pytest.raises(UsageError, match="already holds a run: resume it with --resume"):
        train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)


def test_resume_with_other_settings_names_them(tmp_path: Path) -> None:
    train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)
    with pytest.raises(UsageError, match=r"other settings \(there / here\): episodes 16 / 32"):
        train(CACHE, tiny_config(episodes=32), tmp_path / "r", resume=True, log=silent)


def test_resume_on_another_cache_is_refused(tmp_path: Path) -> None:
    train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)
    other = replace(CACHE, spec=replace(CACHE.spec, fingerprint="0" * 64))
    with pytest.raises(UsageError, match="was trained on the cache"):
        train(other, tiny_config(episodes=16), tmp_path / "r", resume=True, log=silent)
    grown = replace(CACHE, good=(replace(CACHE.good[0], id="new"), *CACHE.good[1:]))
    with pytest.raises(UsageError, match="other videos or splits"):
        train(grown, tiny_config(episodes=16), tmp_path / "r", resume=True, log=silent)


def test_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)
    interrupt_after(monkeypatch, 0)
    again = train(CACHE, None, tmp_path / "r", resume=True, log=silent)
    assert again.val_accuracy == first.val_accuracy


def test_damaged_weights_are_one_clear_line(tmp_path: Path) -> None:
    train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)
    (tmp_path / "r/best.safetensors").write_bytes(b"junk")
    with pytest.raises(ClipspmError, match=r"cannot read .*best\.safetensors") as caught:
        Run.open(tmp_path / "r").load_head()
    assert "\n" not in str(caught.value)


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run directory"):
        Run.open(tmp_path)


def test_default_run_directory_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    first = default_run_dir(tiny_config(), Data(CACHE))
    assert default_run_dir(tiny_config(), Data(CACHE)) == first.with_name(first.name + "-2")


@pytest.mark.parametrize(
    ("dataset", "path", "title"),
    [
        ("folder", "caches/my-clips-ViT-B-16-quickgelu-0a1b2c3d.zarr", "my-clips-ViT-B-16-quickgelu"),
        ("hmdb51", "hmdb51-ViT-B-16-0a1b2c3d.h5", "hmdb51-ViT-B-16"),
        ("demo", "demo/cache.zarr", "demo-cache"),
        ("folder", "-x: [y]\n.zarr", "x-y"),
        ("folder", "::.zarr", "folder"),
    ],
)
def test_files_made_of_a_cache_are_named_after_it(dataset: str, path: str, title: str) -> None:
    assert cache_title(replace(fake_cache(dataset=dataset), path=Path(path))) == title


def test_tensorboard_without_the_extra_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'clipspm\[tensorboard\]'"):
        train(CACHE, tiny_config(), tmp_path / "r", log=silent, log_to=["tensorboard"])


def test_recipes_are_plain_yaml() -> None:
    folder = Path(trainer_module.__file__).parent / "recipes"
    for file in folder.glob("*.yaml"):
        assert isinstance(yaml.safe_load(file.read_text()), dict)
