"""Ablation: same seeds and episodes for every row, nothing trained twice, effects with their sign."""

import csv
import importlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from clipspm.errors import UsageError
from clipspm.train_heads.evaluation.stats import paired
from clipspm.train_heads.experiments.ablate import ablate, ablation_rows, cell_name, parse_drop
from clipspm.train_heads.experiments.ablation_table import AblationResult
from clipspm.train_heads.training.loop import Trainer
from tests.synthetic import fake_cache, silent, tiny_config

ablate_module = importlib.import_module(
    "clipspm.train_heads.experiments.ablate"
)  # the package has a function of that name

CACHE = fake_cache(noise=1.5)
CONFIG = tiny_config(episodes=16, val_every=16)


def run(out: Path, **changes: object) -> AblationResult:
    options = {"drops": ["padm"], "seeds": (0, 1), "episodes": 20, "log": silent, **changes}
    return ablate(CACHE, options.pop("base", CONFIG), out_dir=out, **options)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> AblationResult:
    return run(tmp_path_factory.mktemp("ablation"), heads=["prototype"])


def test_rows_share_seeds_and_episodes(result: AblationResult) -> None:
    assert [row.name for row in result.rows] == ["full", "without padm", "prototype"]
    for row in result.rows:
        assert row.accuracies["inductive"].shape == (2, 20)
    hashes = set()
    for cell in {cell for row in result.rows for cell in row.cells}:
        hashes |= set(json.loads((cell / "results.json").read_text())["evaluations"])
    assert hashes == {result.episodes.hash}


def test_effect_is_full_minus_row(result: AblationResult) -> None:
    full, without = (result[name].accuracies["inductive"] for name in ("full", "without padm"))
    effect = result.effect("without padm")
    assert effect.mean == pytest.approx((full - without).mean())
    assert effect == paired(full, without)


def test_the_dropped_module_is_off_in_its_row_only(result: AblationResult) -> None:
    assert result["without padm"].config.head_config["padm"] is False
    assert result["full"].config.head_config.get("padm", True) is True


def test_head_without_parameters_is_scored_once(result: AblationResult) -> None:
    assert len(result["prototype"].cells) == 1
    assert result["prototype"].seeds("inductive").std == 0
    assert result.trained == 5


def test_rerun_trains_nothing_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained or scored again")

    monkeypatch.setattr(ablate_module, "train", refuse)
    monkeypatch.setattr(ablate_module, "evaluate", refuse)
    again = run(tmp_path)
    assert (first.trained, again.trained) == (4, 0)
    assert again.as_dict() == first.as_dict()


def test_more_rows_and_seeds_train_only_what_is_new(tmp_path: Path) -> None:
    run(tmp_path, seeds=(0,))
    more = run(tmp_path, seeds=(0, 1), drops=["padm", "spm"])
    assert more.trained == 4


def test_more_episodes_score_again_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, seeds=(0,))
    monkeypatch.setattr(ablate_module, "train", None)
    assert run(tmp_path, seeds=(0,), episodes=30).rows[0].accuracies["inductive"].shape == (1, 30)


def test_interrupted_cell_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_config(episodes=48, val_every=16)
    whole = run(tmp_path / "a", base=base, seeds=(0,))
    original, steps = Trainer.step, []

    def step(self: Trainer, number: int) -> dict[str, float]:
        steps.append(number)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(self, number)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", base=base, seeds=(0,))
    parts = run(tmp_path / "b", base=base, seeds=(0,))
    assert steps[:6] == [0, 1, 2, 3, 3, 4]  # saved when it was interrupted
    assert parts.as_dict()["rows"] == whole.as_dict()["rows"]


def test_weights_can_be_dropped(tmp_path: Path) -> None:
    first = run(tmp_path, seeds=(0,), keep_weights=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert run(tmp_path, seeds=(0,)).trained == 0
    assert run(tmp_path, seeds=(0,), episodes=30).trained == 2  # other episodes need the weights again
    assert first.trained == 2


def test_kept_cells_hold_the_selected_weights_and_no_trainer_state(result: AblationResult) -> None:
    assert {p.name for p in result["full"].cells[0].glob("*.safetensors")} == {"best.safetensors"}


def test_cell_depends_on_configuration_cache_and_splits() -> None:
    grown = replace(CACHE, good=CACHE.good[:-1])
    other = replace(CACHE, spec=replace(CACHE.spec, fingerprint="0" * 64))
    names = [cell_name(CONFIG, c) for c in (CACHE, grown, other)]
    names.append(cell_name(replace(CONFIG, seed=1), CACHE))
    assert len(set(names)) == 4
    assert cell_name(replace(CONFIG, device="auto"), CACHE.reordered(1)) == names[0]


def test_grid_is_all_eight_combinations() -> None:
    rows = ablation_rows(CONFIG, grid=True)
    combinations = {tuple(c.head_config.get(m, True) for m in ("hsmr", "spm", "padm")) for c in rows.values()}
    assert len(rows) == len(combinations) == 8


def test_grid_runs_down_to_nothing_left_to_train(tmp_path: Path) -> None:
    result = run(tmp_path, drops=[], grid=True, seeds=(0,), episodes=10)
    assert len(result.rows) == 8
    assert result.rows[-1].name == "without hsmr+spm+padm"


def test_drops_join_with_plus_in_any_order() -> None:
    assert parse_drop("padm+spm") == parse_drop(" SPM + padm ") == ("spm", "padm")
    rows = ablation_rows(CONFIG, drops=["padm+spm", "spm+padm", "hsmr"])
    assert list(rows) == ["full", "without spm+padm", "without hsmr"]


def test_extra_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    shuffled = replace(CONFIG, shuffle_time=True)
    result = run(tmp_path, drops=[], extra={"time-shuffled": shuffled}, seeds=(0,))
    cell = result["time-shuffled"].cells[0]
    facts = json.loads((cell / "results.json").read_text())["evaluations"][result.episodes.hash]
    assert facts["shuffle_time"] is True


def test_every_rendering_holds_the_same_numbers(result: AblationResult, tmp_path: Path) -> None:
    result.save(tmp_path)
    content = json.loads((tmp_path / "ablation.json").read_text())
    rows = list(csv.reader(io.StringIO((tmp_path / "ablation.csv").read_text())))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result.table().rich())
    shown, tex = console.export_text(), (tmp_path / "ablation.tex").read_text()
    assert len(rows) == 1 + 2 * len(content["rows"])
    for written in rows[1:]:
        record = dict(zip(rows[0], written, strict=True))
        (row,) = (r for r in content["rows"] if r["name"] == record["row"])
        facts = row["protocols"][record["protocol"]]
        assert float(record["accuracy"]) == facts["accuracy"]
        assert float(record["interval95"]) == facts["interval95"]
        if "effect" in facts:
            assert float(record["effect_low"]) == facts["effect"]["low"]
        score = f"{100 * facts['accuracy']:.1f}"
        assert score in shown
        assert score in tex
    assert r"\toprule" in tex
    assert r"$\pm$" in tex


def test_effects_are_shown_with_their_sign(result: AblationResult) -> None:
    flipped = replace(result, rows=(result["without padm"], result["full"]))
    shown = [result.table().rows[1][-1], flipped.table().rows[1][-1]]
    effect = result.effect("without padm").mean
    assert shown[0].startswith(f"{100 * effect:+.1f}")
    assert shown[1].startswith(f"{-100 * effect:+.1f}")
    assert np.isclose(flipped.effect("full").mean, -effect)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drops": ["padn"]}, "cannot drop 'padn'; did you mean padm"),
        ({"drops": []}, "nothing to compare"),
        ({"seeds": ()}, "at least one is needed"),
        ({"seeds": (1, 1)}, "each once"),
        ({"base": tiny_config(head="prototype")}, "--drop and --grid are about clip-spm; this is prototype"),
        (
            {"base": tiny_config(head_config={"padm": False})},
            "cannot drop padm: the configuration has it off",
        ),
        ({"base": replace(CONFIG, shots=8, queries=1)}, r"\(test\) has 8 usable videos"),
        ({"heads": ["protype"]}, "unknown head 'protype'; did you mean prototype"),
    ],
)
def test_mistake_is_one_clear_line_before_any_work(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
