"""``clipspm reproduce``: from videos to the table; nothing is done twice, mistakes are one line."""

import json
from pathlib import Path

import pytest

from clipspm.errors import UsageError
from clipspm.train_heads.experiments import cells
from clipspm.train_heads.experiments.planned import Planned, PlannedSpec, fitted, rows_of
from clipspm.train_heads.experiments.reproduce import Pace, Reproduction, duration, forecast_rows
from clipspm.train_heads.training.loop import Trainer
from tests.support.cli import Result, assert_one_clear_line, clipspm
from tests.support.media import (
    TINY_CONFIG,
    numbered_frames,
    register_architecture,
    tiny_local_dir,
    write_video,
)
from tests.support.synthetic import fake_cache, silent

SMALL = {"heads": 1, "head_width": 8, "ffn_width": 16, "pool": False}
OVERRIDES = {"device": "cpu", "episodes": 32, "batch": 8, "val_every": 16, "val_episodes": 10, "way": 3}


def configs(dataset: str = "fake", **asked: object) -> tuple:
    asked = {"recipes": ["default", "official"], "shots": [1, 3], "seeds": [0, 1], **asked}
    return rows_of(dataset, overrides={**OVERRIDES, "head_config": SMALL}, **asked)


def planned_of(cache: object) -> Planned:
    spec = PlannedSpec(dataset="fake", model="m", has_text=True, frames=4, dims={"final": 16})
    return Planned(spec, cache.good, cache.class_names, cache.class_splits)


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def asked(home: Path) -> list[object]:
    """A call on tiny clips with a tiny encoder: two recipes, one number of shots, two seeds."""
    for c, name in enumerate(("wave", "run", "jump", "clap", "sit", "fall")):
        for i in range(4):
            write_video(home / "clips" / name / f"{i}.mp4", numbered_frames(12 + 3 * c + i, 40, 56))
    splits = home / "splits.json"
    splits.write_text(json.dumps({"train": ["wave", "run", "jump"], "test": ["clap", "sit", "fall"]}))
    given = {
        "--videos": home / "clips", "--splits": splits, "--model": tiny_local_dir(home / "tiny"),
        "--precision": "fp32", "--layers": "final", "--shots": "2", "--seeds": "0,1", "--way": 3,
        "--episodes": 32, "--test-episodes": 30, "--frames": 4, "--device": "cpu",
    }  # fmt: skip
    sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["reproduce", "folder", *[part for pair in given.items() for part in pair], *sets]


def table_of(result: Result) -> list[str]:
    assert result.returncode == 0, result.stderr
    return [line for line in result.stdout.splitlines() if not line.startswith("table: ")]


@pytest.fixture(scope="module")
def whole(home: Path, asked: list[object]) -> list[str]:
    return table_of(clipspm(*asked, "--out", home / "whole", home=home))


def test_a_dry_run_does_nothing(home: Path, asked: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "train", None)
    result = clipspm(*asked, "--out", home / "dry", "--dry-run", "--json", home=home)
    assert result.returncode == 0, result.stderr
    assert not (home / "dry").exists()
    found = json.loads(result.stdout)
    assert found["videos"]["planned"] == found["videos"]["left"] == 24
    assert (found["runs"], found["runs_left"]) == (4, 4)
    assert [(row["recipe"], row["shots"], row["runs"]) for row in found["rows"]] == [
        ("default", 2, 2),
        ("official", 2, 2),
    ]
    assert found["seconds"] > 0 and found["videos"]["seconds"] > 0
    assert found["seconds"] == pytest.approx(
        found["videos"]["seconds"] + sum(row["seconds"] for row in found["rows"])
    )


def test_from_videos_to_the_table(home: Path, whole: list[str]) -> None:
    text = "\n".join(whole)
    for part in ("clip-spm, inductive", "clip-spm (official), transductive", "± "):
        assert part in text
    assert "no published numbers are known of folder 3-way 2-shot" in text
    content = json.loads((home / "whole" / "reproduce.json").read_text())
    assert {(s["method"], s["protocol"], s["seeds"]) for s in content["scores"]} == {
        (name, how, 2)
        for name in ("clip-spm", "clip-spm (official)")
        for how in ("inductive", "transductive")
    }
    assert (home / "whole" / "reproduce.md").read_text().startswith("Measured and published")


def test_an_interrupted_call_goes_on_and_does_nothing_twice(
    home: Path, asked: list[object], whole: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of the second of four runs."""
    trained, step = [], Trainer.step

    def counted(self: Trainer, number: int) -> dict[str, float]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((self.run.path.name, number))
        return step(self, number)

    call = [*asked, "--out", home / "again"]
    monkeypatch.setattr(Trainer, "step", counted)
    stopped = clipspm(*call, home=home)
    assert_one_clear_line(stopped, "kept; go on with: clipspm reproduce folder", code=130)
    assert len(trained) == 3

    def rest(self: Trainer, number: int) -> dict[str, float]:
        trained.append((self.run.path.name, number))
        return step(self, number)

    monkeypatch.setattr(Pace, "measure", lambda planned, config: Pace(1.0, 1.0, 1.0, held_out=True))
    left = json.loads(clipspm(*call, "--dry-run", "--json", home=home).stdout)
    assert left["videos"]["left"] == 0 and left["runs_left"] == 3
    monkeypatch.setattr(Trainer, "step", rest)
    assert table_of(clipspm(*call, home=home)) == whole
    assert len(trained) == len(set(trained)) == 4 * 2  # four runs of two steps, each once
    monkeypatch.setattr(Trainer, "step", None)
    assert table_of(clipspm(*call, home=home)) == whole


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        (("hmdb",), ("unknown data set 'hmdb'", "hmdb51")),
        (("hmdb51", "--recipes", "offical"), ("unknown recipe 'offical'", "official")),
        (("hmdb51", "--shots", "1,x"), ("--shots '1,x'", "1,2")),
        (("hmdb51", "--seeds", "0,0"), ("--seeds '0,0'", "only once")),
        (("hmdb51", "--shots", "0"), ("--shots", "at least 1")),
        (("hmdb51", "--way", "1"), ("--way", "at least 2")),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, wrong: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_one_clear_line(clipspm("reproduce", *wrong, home=tmp_path), *parts, code=2)


def test_too_small_a_class_is_said_before_anything_is_extracted(home: Path, asked: list[object]) -> None:
    result = clipspm(*asked, "--shots", "4", "--out", home / "small", home=home)
    assert_one_clear_line(result, "class 'clap' (test) has 4 usable videos", code=2)
    assert not (home / "small").exists()


def test_videos_without_splits_are_refused_before_anything_is_extracted(
    home: Path, asked: list[object]
) -> None:
    at = asked.index("--splits")
    result = clipspm(*asked[:at], *asked[at + 2 :], "--out", home / "none", home=home)
    assert_one_clear_line(result, "the test split has 0", "--splits FILE", code=2)
    assert not (home / "none").exists()


# ------------------------------------------------------------------------------------------- its parts


def test_rows_are_every_recipe_shot_and_seed() -> None:
    found = [(c.recipe, c.shots, c.seed) for c in configs("hmdb51")]
    assert found == [(r, k, s) for r in ("default", "official") for k in (1, 3) for s in (0, 1)]
    assert {c.way for c in configs()} == {3}


def test_published_numbers_stand_beside_what_was_measured(tmp_path: Path) -> None:
    cache = fake_cache(dataset="hmdb51")
    ones = rows_of(
        "hmdb51",
        recipes=["default"],
        shots=[1],
        seeds=[0],
        overrides={**OVERRIDES, "way": 5, "head_config": SMALL},
    )
    result = Reproduction.plan(cache, ones, out=tmp_path, episodes=20, say=silent).run(silent)
    table = result.table()
    assert table.columns == ["", "source", "CLIP", "selected on", "hmdb51 5-way 1-shot"]
    by_name = {row[0]: row for row in table.rows}
    assert by_name["CLIP-SPM"] == [
        "CLIP-SPM",
        "arXiv 2512.19036",
        "fine-tuned",
        "test (released code)",
        "78.2",
    ]
    own = next(row for name, row in by_name.items() if name.endswith(", inductive"))
    assert own[1:4] == ["measured here", "frozen", "val"] and "±" in own[4]
    assert any("not comparable with what was measured here" in note for note in table.notes)


def test_planned_videos_are_refused_as_a_cache_of_them_is() -> None:
    planned = planned_of(fake_cache(per_class=3))
    assert len(fitted(planned, configs(shots=[1]), silent)) == 4
    with pytest.raises(UsageError, match="3 usable videos"):
        fitted(planned, configs(shots=[3]), silent)


def test_a_forecast_measures_what_is_left_only(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(planned: Planned, config: object) -> Pace:
        measured.append((config.recipe, config.shots))
        return Pace(1.0, 2.0, 0.5, held_out=False)

    monkeypatch.setattr(Pace, "measure", measure)
    states = ["finished"] * 2 + ["to train", "finished"] + ["to score"] * 4
    rows = forecast_rows(planned_of(fake_cache()), configs(), states, test_episodes=100, say=silent)
    assert measured == [("default", 3), ("official", 1), ("official", 3)]
    # to start, 4 steps, 100 test episodes, and 2 validations of 10 episodes under one of two protocols
    each = 1 + 4 * 2 + 0.5 * (100 + 2 * 10 / 2)
    assert [row.seconds for row in rows] == [0, each, 2 * each, 2 * each]


def test_widths_that_are_unknown_leave_the_time_unknown() -> None:
    planned = Planned(PlannedSpec(dataset="fake", model="m", has_text=True, frames=4), (), (), {})
    rows = forecast_rows(planned, configs(), ["to train"] * 8, test_episodes=10, say=silent)
    assert {row.seconds for row in rows} == {None}
    assert duration(None) == "unknown"


def test_weights_out_of_reach_leave_the_encoder_unknown(
    home: Path, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ViT without its weights: training is measured in its widths."""
    from clipspm.extract import trial
    from clipspm.extract.weights import WeightsOutOfReach

    def out_of_reach(*args: object, **more: object) -> None:
        raise WeightsOutOfReach("the weights are not on this machine")

    monkeypatch.setattr(trial, "run", out_of_reach)
    name, weights = register_architecture(home / "arch", "far-away", TINY_CONFIG), home / "weights.pt"
    weights.touch()
    at = asked.index("--model")
    call = [*asked[:at], "--model", name, "--pretrained", weights, *asked[at + 2 :]]
    call[call.index("final")] = "1:mean,final"
    result = clipspm(*call, "--recipes", "official", "--out", home / "far", "--dry-run", "--json", home=home)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["videos"]["seconds"] is None and found["seconds"] is None
    assert found["unknown"] == "the weights are not on this machine"
    assert found["rows"][0]["seconds"] > 0
