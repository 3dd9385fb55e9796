"""Ablation: same seeds and episodes for every row, nothing trained twice, effects with their sign."""

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from clipspm.engines import EngineConfig
from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.evaluation.stats import paired
from clipspm.train_heads.experiments import cells as cells_module
from clipspm.train_heads.experiments.ablate import (
    ablate,
    ablate_shots,
    describe_plans,
    plan_shots,
    plans_table,
)
from clipspm.train_heads.experiments.ablation_table import AblationResult, ShotsResult
from clipspm.train_heads.experiments.cells import cell_name
from clipspm.train_heads.experiments.rows import ablation_rows, parse_drop
from clipspm.train_heads.heads.registry import HEADS
from clipspm.train_heads.training.loop import Trainer
from tests.support.synthetic import fake_cache, silent, tiny_config

CACHE = fake_cache(noise=1.5)
CONFIG = tiny_config(episodes=16, val_every=16, head_config={"pool": False})


def run(out: Path, **changes: object) -> AblationResult:
    options = {"drops": ["padm"], "seeds": (0, 1), "episodes": 20, "log": silent, **changes}
    return ablate(CACHE, options.pop("base", CONFIG), out_dir=out, **options)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> AblationResult:
    return run(tmp_path_factory.mktemp("ablation"), heads=["prototype"])


def test_rows_share_seeds_and_episodes(result: AblationResult) -> None:
    assert [row.name for row in result.rows] == ["full", "without padm", "prototype"]
    shapes = {row.name: row.accuracies["inductive"].shape for row in result.rows}
    assert shapes == {"full": (2, 20), "without padm": (2, 20), "prototype": (1, 20)}
    hashes = set()
    for cell in {cell for row in result.rows for cell in row.cells}:
        hashes |= set(json.loads((cell / "results.json").read_text())["evaluations"])
    assert hashes == {result.episodes.hash}


def test_effect_is_full_minus_row(result: AblationResult) -> None:
    full, without = (result[name].accuracies["inductive"] for name in ("full", "without padm"))
    effect = result.effect("without padm")
    assert effect.mean == pytest.approx((full - without).mean())
    assert effect == paired(full, without)
    alone = result["prototype"].accuracies["inductive"]
    assert result.effect("prototype") == paired(full, np.repeat(alone, 2, axis=0))
    over_seeds = result.effect_over_seeds("prototype")
    assert over_seeds is not None and over_seeds.std == pytest.approx(full.mean(1).std(ddof=1))


def test_the_dropped_module_is_off_in_its_row_only(result: AblationResult) -> None:
    assert result["without padm"].config.head_config["padm"] is False
    assert result["full"].config.head_config.get("padm", True) is True


def test_head_without_parameters_is_scored_once(result: AblationResult) -> None:
    assert len(result["prototype"].cells) == 1
    assert result["prototype"].seeds("inductive") is None
    (row,) = (row for row in result.as_dict()["rows"] if row["name"] == "prototype")
    assert (row["seeds"], row["protocols"]["inductive"]["over_seeds"]) == (0, None)
    shown = {row[0]: row[2] for row in result.table().rows}
    assert shown["prototype"] == "" and shown["without padm"].startswith("± ")
    (line, _) = (line for line in lines_of(ShotsResult((result,))) if line["method"] == "prototype")
    assert (line["seeds"], line["seed_std_percent"]) == ("0", "")
    assert result.trained == 5


def lines_of(result: ShotsResult) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(result.csv())))


def test_rerun_trains_nothing_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained or scored again")

    monkeypatch.setattr(cells_module, "train", refuse)
    monkeypatch.setattr(cells_module, "evaluate", refuse)
    again = run(tmp_path)
    assert (first.trained, again.trained) == (4, 0)
    assert again.as_dict() == first.as_dict()


def test_more_rows_and_seeds_train_only_what_is_new(tmp_path: Path) -> None:
    run(tmp_path, seeds=(0,))
    more = run(tmp_path, seeds=(0, 1), drops=["padm", "spm"])
    assert more.trained == 4


def test_more_episodes_score_again_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, seeds=(0,))
    monkeypatch.setattr(cells_module, "train", None)
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
    names = [cell_name(CONFIG, Data(c)) for c in (CACHE, grown, other)]
    names.append(cell_name(replace(CONFIG, seed=1), Data(CACHE)))
    assert len(set(names)) == 4
    assert cell_name(replace(CONFIG, device="auto"), Data(CACHE.reordered(1))) == names[0]


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


def test_evidence_and_layers_can_be_dropped() -> None:
    assert parse_drop("8:mean+text+look+spm") == ("spm", "look", "text", "8:mean")
    rows = ablation_rows(tiny_config(), drops=["text", "final+move"])
    assert rows["without text"].head_config["text"] is False
    both = rows["without move+final"].head_config
    assert (both["move"], both["without"]) == (False, ("final",))
    with pytest.raises(UsageError, match="cannot drop look: clip-spm has it in the default recipe only"):
        ablation_rows(tiny_config(recipe="official"), drops=["look"])
    with pytest.raises(UsageError, match="cannot drop final: the configuration has it off already"):
        ablation_rows(tiny_config(head_config={"without": ["final"]}), drops=["final"])


def test_extra_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    shuffled = replace(CONFIG, shuffle_time=True)
    result = run(tmp_path, drops=[], extra={"time-shuffled": shuffled}, seeds=(0,))
    cell = result["time-shuffled"].cells[0]
    facts = json.loads((cell / "results.json").read_text())["evaluations"][result.episodes.hash]
    assert facts["shuffle_time"] is True


def test_every_rendering_holds_the_same_numbers(result: AblationResult, tmp_path: Path) -> None:
    ShotsResult((result,)).save(tmp_path)
    content = json.loads((tmp_path / "ablation.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "ablation.csv").read_text())))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result.table())
    shown, tex = console.export_text(), (tmp_path / "ablation.tex").read_text()
    assert len(rows) == 2 * len(content["rows"])
    for record in rows:
        (row,) = (r for r in content["rows"] if r["name"] == record["method"])
        facts = row["protocols"][record["protocol"]]
        assert float(record["accuracy_percent"]) == pytest.approx(100 * facts["accuracy"])
        assert float(record["interval95_percent"]) == pytest.approx(100 * facts["interval95"])
        if "effect" in facts:
            low = 100 * facts["effect"]["low"]
            assert float(record["effect_low_points"]) == pytest.approx(low, abs=1e-9)
        score = f"{100 * facts['accuracy']:.1f}"
        assert score in shown
        assert score in tex
    assert r"\toprule" in tex
    assert r"$\pm$" in tex


def test_effects_are_shown_with_their_sign(result: AblationResult) -> None:
    flipped = replace(result, rows=(result["without padm"], result["full"]))
    shown = [result.table().rows[2][-1], flipped.table().rows[2][-1]]
    effect = result.effect("without padm").mean
    assert shown[0].startswith(f"{100 * effect:+.1f}")
    assert shown[1].startswith(f"{-100 * effect:+.1f}")
    assert np.isclose(flipped.effect("full").mean, -effect)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drops": ["padn"]}, "cannot drop 'padn'; did you mean padm"),
        ({"drops": ["final:"]}, "cannot drop 'final:'"),
        ({"drops": []}, "nothing to compare"),
        ({"seeds": ()}, "give at least one"),
        ({"seeds": (1, 1)}, "each only once"),
        ({"engine": EngineConfig(devices=("cpu", "cuda:77"))}, "'cuda:77' is not available"),
        ({"drops": ["padm"], "base": tiny_config().with_head(matcher="dtw")}, "matcher"),
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
    with pytest.raises(UsageError, match=message):
        planned(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------- several shots, dry runs

OPTIONS = {"drops": ["padm"], "seeds": (0, 1), "episodes": 20}


def planned(out: Path, **changes: object) -> tuple:
    options = {**OPTIONS, "shots": [CONFIG.shots], "log": silent, **changes}
    base = options.pop("base", CONFIG)
    if "base" in changes:
        options["shots"] = [base.shots]
    return plan_shots(CACHE, base, out_dir=out, **options)


def test_several_shots_are_one_table_of_what_each_is_alone(tmp_path: Path) -> None:
    options = {**OPTIONS, "heads": ["prototype"], "log": silent}
    both = ablate_shots(CACHE, CONFIG, shots=[1, 3], out_dir=tmp_path / "both", **options)
    alone = [ablate(CACHE, replace(CONFIG, shots=s), out_dir=tmp_path / f"{s}", **options) for s in (1, 3)]
    written = json.loads((tmp_path / "both" / "ablation.json").read_text())
    assert written["shots"] == [1, 3]
    assert written["tables"] == json.loads(json.dumps([result.as_dict() for result in alone]))
    assert json.loads((tmp_path / "1" / "ablation.json").read_text()) == written["tables"][0]
    assert lines_of(both) == [line for result in alone for line in lines_of(ShotsResult((result,)))]
    headings = [row[0] for row in both.table().rows if not any(row[1:])]
    assert headings == [
        "1-shot, inductive",
        "1-shot, transductive",
        "3-shot, inductive",
        "3-shot, transductive",
    ]
    assert [row for result in alone for row in result.table().rows] == list(both.table().rows)
    assert "1/3-shot" in both.table().title
    assert "3-shot, inductive" in (tmp_path / "both" / "ablation.tex").read_text()
    console = Console(width=80, file=io.StringIO())
    console.print(both.table(), soft_wrap=True)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80 and "chance: 33.3 % (3-way)" in text
    for cell in (cell for row in both.table().rows for cell in row):
        assert cell in text


def test_shots_that_cannot_be_met_are_refused_before_any_work(tmp_path: Path) -> None:
    base = replace(CONFIG, queries=1)
    for shots, said in (([1, 8], "8 usable videos"), ([3, 3], "each only once"), ([], "at least one")):
        with pytest.raises(UsageError, match=said):
            ablate_shots(CACHE, base, shots=shots, out_dir=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_against_all_is_every_other_head() -> None:
    assert list(ablation_rows(CONFIG, heads=["all"])) == [
        "full",
        *(name for name in HEADS if name != "clip-spm"),
    ]


def test_a_dry_run_says_what_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"heads": ["prototype"], "shots": [1, 3]}
    facts = describe_plans(planned(tmp_path / "a", **options))
    assert facts["cells"] == {"to train": 10, "to finish": 0, "to score": 0, "finished": 0}
    assert [row["name"] for row in facts["tables"][0]["rows"]] == ["full", "without padm", "prototype"]
    assert [row["seeds"] for row in facts["tables"][0]["rows"]] == [2, 2, 0]
    assert not (tmp_path / "a").exists()
    result = ablate_shots(
        CACHE, CONFIG, shots=[1], out_dir=tmp_path / "a", **OPTIONS, heads=["prototype"], log=silent
    )
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    plans = planned(tmp_path / "a", **options)
    facts = describe_plans(plans)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert facts["cells"] == {"to train": 5, "to finish": 0, "to score": 0, "finished": 5}
    names = [cell["name"] for row in facts["tables"][0]["rows"] for cell in row["cells"]]
    assert names == [cell.name for row in result.results[0].rows for cell in row.cells]
    shown = plans_table(plans)
    assert ["3-shot", "", "", "", ""] in shown.rows and ["full", "", "", "", "2"] in shown.rows
    assert f"cache: {CACHE.path}" in shown.notes
    more = describe_plans(planned(tmp_path / "a", heads=["prototype"], episodes=30))
    assert more["cells"] == {"to train": 0, "to finish": 0, "to score": 5, "finished": 0}
    (result.results[0].rows[0].cells[0] / "results.json").unlink()
    cut = describe_plans(planned(tmp_path / "a", heads=["prototype"]))
    assert (cut["cells"]["to finish"], cut["cells"]["finished"]) == (1, 4)


def test_a_dry_run_refuses_what_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "clipspm.engines.slurm", raising=False)
    (tmp_path / "file").touch()
    for out, changes, said in (
        (tmp_path, {"engine": EngineConfig(name="slurm")}, r"pip install 'clipspm\[slurm\]'"),
        (tmp_path / "file" / "x", {}, "cannot write to .*file"),
    ):
        with pytest.raises(ClipspmError, match=said):
            planned(out, **changes)
        with pytest.raises(ClipspmError, match=said):
            run(out, **changes)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
