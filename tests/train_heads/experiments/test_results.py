"""Collected results, paired comparisons, what selection on test is worth, and numbers by class."""

import csv
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from clipspm.cache.reader import home_table
from clipspm.errors import UsageError
from clipspm.extract.report import CheckReport, ClassReport, benchmarks_table, describe_benchmarks
from clipspm.tables import Table
from clipspm.train_heads.episodes.draw import EpisodeSpec, draw
from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.evaluation.per_class import ClassTable, class_interval
from clipspm.train_heads.evaluation.result import load_evaluation
from clipspm.train_heads.evaluation.selection_bias import selection_bias
from clipspm.train_heads.experiments.compare import compare
from clipspm.train_heads.experiments.results import collect, published
from clipspm.train_heads.heads.registry import HEADS
from clipspm.train_heads.runs import HeadShape, Run
from clipspm.train_heads.training.loop import Trainer
from clipspm.train_heads.training.train import train
from tests.support.cli import clipspm
from tests.support.edits import edit_facts
from tests.support.synthetic import fake_cache, real_cache, silent, tiny_config

CACHE = fake_cache({"train": 6, "val": 5, "test": 6}, noise=1.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads, one of them with two seeds and one more setting; one evaluated on other episodes too."""
    root = tmp_path_factory.mktemp("home") / "runs"
    configs = {
        "full-0": tiny_config(episodes=16),
        "full-1": tiny_config(episodes=16, seed=1),
        "no padm-0": tiny_config(episodes=16, head_config={"padm": False}),
        "prototype-0": tiny_config(head="prototype"),
    }
    for name, config in configs.items():
        train(CACHE, config, root / name, log=silent)
        evaluate(root / name, CACHE, episodes=60, log=silent)
    evaluate(root / "prototype-0", CACHE, episodes=60, seed=5, log=silent)
    (root / "notes").mkdir()
    return root


def test_seeds_are_one_score_and_other_episodes_are_marked(runs: Path) -> None:
    found = collect([runs])
    full = [s for s in found.scores if s.seeds == (0, 1)]
    assert [s.column[2] for s in full] == ["inductive", "transductive"]
    by_hand = np.stack([load_evaluation(runs / f"full-{s}").accuracies("inductive") for s in (0, 1)])
    assert full[0].as_dict()["accuracy"] == pytest.approx(by_hand.mean())
    assert full[0].over_seeds.std == pytest.approx(by_hand.mean(1).std(ddof=1))
    table = found.table()
    cells = {row[0]: row[1] for row in table.rows}
    assert cells["prototype"].count("[a]") == 1  # the last of its two lines
    assert [row[1].count("[") for row in table.rows if row[0] == "prototype"] == [0, 1]
    assert not any("[" in cell for name, cell in cells.items() if name != "prototype")
    other = evaluate(runs / "prototype-0", CACHE, episodes=60, seed=5, log=silent).episodes.full_hash
    assert any(f"[a]: not comparable with its column: episodes {other[:8]}" in note for note in table.notes)
    assert any("padm=false" in name for name in cells)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("coverage", {"expected": 40, "found": 38}, "38 of 40 videos"),
        ("cache_fingerprint", "e" * 64, "cache fake (eeeeeeee)"),
        ("selection", "none", "selection none"),
    ],
)
def test_what_is_not_comparable_is_marked(
    runs: Path, tmp_path: Path, key: str, value: object, said: str
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    edit_facts(tmp_path / "runs" / "no padm-0", lambda facts: facts.update({key: value}))
    table = collect([tmp_path / "runs"]).table()
    marked = [row[0] for row in table.rows if "[" in row[1]]
    assert any("padm=false" in name for name in marked)
    assert any(said in note for note in table.notes)


def test_every_format_holds_the_same_numbers(runs: Path) -> None:
    found = collect([runs / "full-0"])
    accuracy = found.scores[0].as_dict()["accuracy"]
    assert f"{100 * accuracy:.1f}" in found.table().markdown()
    assert f"{100 * accuracy:.1f}" in found.table().latex()
    assert r"\toprule" in found.table().latex()
    (line, *_) = csv.DictReader(io.StringIO(found.csv()))
    assert float(line["accuracy_percent"]) == pytest.approx(100 * accuracy)
    assert found.as_dict()["scores"][0]["accuracy"] == accuracy


def test_a_head_with_nothing_to_train_has_no_seeds(tmp_path: Path) -> None:
    """Two runs that differ in a seed that changes nothing are one score, as in the table of an ablation."""
    off = {"hsmr": False, "spm": False, "padm": False, "motion_taps": 0, "learn_logit_scale": False}
    for seed in (0, 1):
        for name, config in (
            ("prototype", tiny_config(head="prototype", seed=seed)),
            ("off", tiny_config(seed=seed, head_config={**off, "position": False})),
            ("trx", tiny_config(head="trx", seed=seed, episodes=8)),
        ):
            train(CACHE, config, tmp_path / f"{name}-{seed}", log=silent)
            evaluate(tmp_path / f"{name}-{seed}", CACHE, episodes=20, protocols=("inductive",), log=silent)
    found = collect([tmp_path])
    assert found.skipped == ()
    facts = {score.row: (score.as_dict()["seeds"], score.as_dict()["seed_std"]) for score in found.scores}
    assert facts.pop("trx") == (2, pytest.approx(found.scores[-1].accuracies.mean(1).std(ddof=1)))
    assert set(facts.values()) == {(0, None)} and len(facts) == 2
    lines = list(csv.DictReader(io.StringIO(found.csv())))
    assert [(line["seeds"], line["seed_std_percent"] == "") for line in lines] == [
        ("0", True),
        ("0", True),
        ("2", False),
    ]
    assert sum("(s " in cell for row in found.table().rows for cell in row) == 1


@pytest.mark.parametrize("name", list(HEADS))
def test_whether_a_run_trains_is_told_without_its_weights(name: str) -> None:
    config = tiny_config(head=name)
    run = Run(Path("nowhere"), config, HeadShape(16, 4, {}), {})
    assert run.trains() == HEADS[name].trained == HeadShape(16, 4, {}).build(config).trainable


def test_published_numbers_stand_beside_their_data_set(runs: Path, tmp_path: Path) -> None:
    assert collect([runs]).published_table() is None
    other = fake_cache({"train": 6, "val": 5, "test": 6}, dataset="hmdb51")
    train(other, tiny_config(head="prototype", way=5), tmp_path / "r", log=silent)
    evaluate(tmp_path / "r", other, episodes=5, log=silent)
    beside = collect([tmp_path]).published_table()
    assert beside is not None
    assert beside.columns[-1] == "hmdb51 5-way 1-shot" and len(beside.columns) == 5
    row = next(row for row in beside.rows if row[0] == "CLIP-SPM")
    assert row[2:] == ["fine-tuned", "test (released code)", "78.2"]
    for entry in published():
        assert 0.3 < entry["accuracy"] < 1 and entry["clip"] in ("fine-tuned", "frozen")


def test_nothing_to_collect_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no evaluated runs at .*clipspm eval RUN"):
        collect([tmp_path])
    with pytest.raises(UsageError, match="is not a folder of runs"):
        collect([tmp_path / "absent"])


def test_a_damaged_run_is_left_out_and_said(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "full-1" / "results.json").write_text("{")
    found = collect([tmp_path / "runs"])
    assert len(found.skipped) == 1 and "results.json is damaged" in found.skipped[0]
    assert {s.seeds for s in found.scores} == {(0,), ()}


def test_two_runs_are_compared_by_episode(runs: Path) -> None:
    result = compare(runs / "full-0", runs / "prototype-0")
    a, b = (load_evaluation(runs / n, result.episode_hash).accuracies() for n in ("full-0", "prototype-0"))
    effect = result.difference("inductive")
    assert effect.mean == pytest.approx((a - b).mean())
    assert effect.low < effect.mean < effect.high
    assert result.over_seeds("inductive") is None
    assert json.loads(json.dumps(result.as_dict()))["protocols"]["inductive"]["difference"]["n"] == 60


def test_seeds_of_one_side_are_averaged_and_paired_where_both_have_them(runs: Path) -> None:
    both = [runs / "full-0", runs / "full-1"]
    result = compare(both, runs / "prototype-0")
    mean = np.mean([load_evaluation(r, result.episode_hash).accuracies() for r in both], axis=0)
    other = load_evaluation(runs / "prototype-0", result.episode_hash).accuracies()
    assert result.difference("inductive").mean == pytest.approx((mean - other).mean())
    seeds = compare(both, both).over_seeds("inductive")
    assert seeds is not None and (seeds.mean, seeds.n) == (0, 2)


def test_what_cannot_be_compared_says_why(runs: Path, tmp_path: Path) -> None:
    train(CACHE, tiny_config(head="prototype"), tmp_path / "r", log=silent)
    evaluate(tmp_path / "r", CACHE, episodes=9, log=silent)
    with pytest.raises(UsageError, match="have no episodes in common: they were evaluated on"):
        compare(runs / "full-0", tmp_path / "r")
    with pytest.raises(UsageError, match="a side may differ in seeds only"):
        compare([runs / "full-0", runs / "no padm-0"], tmp_path / "r")
    with pytest.raises(UsageError, match="there is no run .*absent; "):
        compare(runs / "full-0", tmp_path / "absent")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "r"
    train(CACHE, tiny_config(episodes=160), path, log=silent, keep_checkpoints=3)
    return path


def test_checkpoints_are_kept_evenly(kept: Path) -> None:
    assert Run.open(kept).checkpoints() == ["step-000008", "step-000014", "step-000020"]
    facts = {
        w: Run.open(kept).load_weights(Run.open(kept).load_head(w), w) for w in Run.open(kept).checkpoints()
    }
    assert [f["step"] for f in facts.values()] == [8, 14, 20]


def test_what_choosing_on_test_would_have_reported(kept: Path) -> None:
    before = {f.name: f.read_bytes() for f in kept.glob("*.safetensors")}
    bias = selection_bias(kept, CACHE, episodes=50, log=silent)
    assert set(bias.scores) == {"best", "last", "step-000008", "step-000014", "step-000020"}
    for protocol in bias.honest.protocols:
        which, best = bias.chosen_on_test(protocol)
        assert best == max(s[protocol] for s in bias.scores.values())
        again = evaluate(Run.open(kept).load_head(which), CACHE, episodes=bias.honest.episodes, log=silent)
        assert again.estimate(protocol).mean == best >= bias.honest.estimate(protocol).mean
        assert bias.scores["best"][protocol] == bias.honest.estimate(protocol).mean
    assert {f.name: f.read_bytes() for f in kept.glob("*.safetensors")} == before
    written = Run.open(kept).results()["evaluations"][bias.honest.name]
    assert written["selection_bias"] == bias.as_dict()
    assert written["protocols"]["inductive"]["accuracy"] == bias.honest.estimate().mean
    assert "Report the honest one." in bias.table().notes[-1]


def test_without_checkpoints_it_says_what_to_do(runs: Path) -> None:
    with pytest.raises(UsageError, match="train with --keep-checkpoints 10"):
        selection_bias(runs / "full-0", CACHE, log=silent)


def test_keeping_checkpoints_changes_no_number(kept: Path, tmp_path: Path) -> None:
    train(CACHE, tiny_config(episodes=160), tmp_path / "r", log=silent)
    assert (tmp_path / "r" / "last.safetensors").read_bytes() == (kept / "last.safetensors").read_bytes()


def test_confusion_equals_a_loop() -> None:
    pool = Pool.from_cache(CACHE, "test")
    drawn = draw(EpisodeSpec(dataset="fake", split="test", way=4, queries=2, dirichlet=2), pool, 30)
    guesses = np.random.default_rng(0).integers(0, 4, drawn.query.shape)
    expected = np.zeros((6, 6), int)
    for e in range(30):
        for q, label in enumerate(drawn.query_labels[e]):
            expected[drawn.classes[e, label], drawn.classes[e, guesses[e, q]]] += 1
    table = ClassTable.of(guesses, drawn)
    assert table.names == pool.names
    assert (table.confusion == expected).all()
    with np.errstate(invalid="ignore"):
        assert table.accuracies.tolist() == pytest.approx((np.diag(expected) / expected.sum(1)).tolist())


@pytest.mark.parametrize(("queries", "dirichlet", "seeds"), [(1, 0, 1), (2, 0, 1), (3, 2, 2)])
def test_the_interval_of_a_class_is_that_of_another_draw_of_episodes(
    queries: int, dirichlet: int, seeds: int
) -> None:
    """Queries of an episode are right or wrong together: the spread over draws is what the interval says."""
    pool = Pool.from_cache(fake_cache({"test": 6}), "test")
    rng, shares, halves = np.random.default_rng(0), [], []
    for seed in range(150):
        spec = EpisodeSpec(
            dataset="fake", split="test", way=4, queries=queries, dirichlet=dirichlet, seed=seed
        )
        drawn = draw(spec, pool, 120)
        luck = rng.random((120, 1)) < 0.5  # of the episode
        wrong = rng.random((seeds, *drawn.query.shape)) < np.where(luck, 0.1, 0.6)
        table = ClassTable.of((drawn.query_labels + wrong) % 4, drawn)
        shares.append(table.accuracies)
        halves.append(table.half)
    assert table.queries.sum() == drawn.query.size and table.seeds == seeds
    assert np.mean(halves) == pytest.approx(1.96 * np.std(shares, axis=0).mean(), rel=0.12)


def test_by_class_what_is_right_or_absent_throughout_has_no_interval() -> None:
    drawn = draw(EpisodeSpec(dataset="fake", split="test", way=6), Pool.from_cache(CACHE, "test"), 20)
    table = ClassTable.of(drawn.query_labels, drawn)
    assert np.isnan(table.half).all() and (table.accuracies == 1).all()
    assert [row[2] for row in table.tables("x")[0].rows] == ["100.0"] * 6
    assert table.records()[0]["interval95"] is None


def test_many_classes_are_shown_by_the_pairs_confused_most() -> None:
    names = tuple(f"class {c:02d}" for c in range(30))
    confusion = 10 * np.eye(30, dtype=np.int64)
    confusion[3, 5], confusion[7, 1] = 10, 5
    table = ClassTable(names, confusion, np.full(30, np.nan))
    pairs = table.tables("x")[1]
    assert [list(row) for row in pairs.rows] == [
        ["class 03", "class 05", "50.0"],
        ["class 07", "class 01", "33.3"],
    ]
    assert table.records()[3]["taken for class 05"] == 10 and len(table.records()[3]) == 4 + 30


def test_the_interval_over_classes_covers_another_draw_of_classes() -> None:
    """Classes with effects of their own, drawn again and again: 95 % intervals hold the mean over all classes."""
    pool = Pool.from_cache(fake_cache({"test": 12}), "test")
    drawn = draw(EpisodeSpec(dataset="fake", split="test", way=5), pool, 3000)
    rng, covered, widths = np.random.default_rng(1), 0, []
    for _ in range(200):
        effects = rng.normal(0, 0.1, 12)
        values = 0.7 + effects[drawn.classes].mean(1) + rng.normal(0, 0.15, 3000)
        found = class_interval(values, drawn, resamples=300)
        assert found is not None
        covered += found[0] <= 0.7 <= found[1]
        widths.append(found[1] - found[0])
    assert 175 <= covered <= 199
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.1 / 12**0.5, rel=0.25)


def test_no_interval_over_classes_where_all_are_in_every_episode() -> None:
    pool = Pool.from_cache(CACHE, "test")
    drawn = draw(EpisodeSpec(dataset="fake", split="test", way=6), pool, 30)
    assert class_interval(np.full(30, 0.5), drawn) is None


def test_the_command_line(runs: Path, tmp_path: Path) -> None:
    home = runs.parent
    shown = clipspm("results", home=home)
    assert shown.returncode == 0, shown.stderr
    assert "prototype" in shown.stdout and "not comparable" in shown.stdout
    for format, part in (
        ("csv", "method,dataset"),
        ("latex", r"\toprule"),
        ("markdown", "|---|"),
        ("json", "{"),
    ):
        written = clipspm("results", runs, "--format", format, "--out", tmp_path / format, home=home)
        assert written.returncode == 0, written.stderr
        assert part in (tmp_path / format).read_text()
    assert json.loads(clipspm("results", "--json", home=home).stdout)["skipped"] == []
    compared = clipspm("compare", runs / "full-0", runs / "no padm-0", "--json", home=home)
    assert json.loads(compared.stdout)["protocols"]["inductive"]["difference"]["n"] == 60
    assert "A − B" in clipspm("compare", runs / "full-0", runs / "no padm-0", home=home).stdout
    wrong = clipspm("compare", runs / "full-0", "nowhere", home=home)
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1


def test_episodes_on_the_command_line(runs: Path, tmp_path: Path) -> None:
    """Made, shown, verified, scored; with a cache on the disk."""
    home = runs.parent
    cache = real_cache(tmp_path / "c.zarr", CACHE).path
    file = tmp_path / "e.npz"
    made = clipspm(
        "episodes", "make", "--cache", cache, "--out", file, "--episodes", 30, "--way", 3, "--unbalanced",
        "--source-pattern", r"^(.*v00)[0-3]$", "--json", home=home,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    assert (facts["episodes"], facts["way"], facts["dirichlet"], facts["split"]) == (30, 3, 2, "test")
    shown = clipspm("episodes", "show", file, "--episode", 4, home=home)
    assert facts["hash"] in shown.stdout and "supports" in shown.stdout
    verified = clipspm("episodes", "verify", file, "--cache", cache, home=home)
    assert verified.returncode == 0 and "drawn from" in verified.stdout
    other = real_cache(tmp_path / "d.zarr", fake_cache({"train": 6, "val": 5, "test": 6}, per_class=7)).path
    refused = clipspm("episodes", "verify", file, "--cache", other, "--json", home=home)
    assert refused.returncode == 1 and json.loads(refused.stdout)["problems"]
    trained = clipspm(
        "train-heads",
        "--cache",
        cache,
        "--head",
        "prototype",
        "--way",
        3,
        "--run-dir",
        tmp_path / "r",
        home=home,
    )
    assert trained.returncode == 0, trained.stderr
    scored = clipspm("eval", tmp_path / "r", "--episodes-file", file, "--json", home=home)
    found = json.loads(scored.stdout)
    assert found["episode_hash"] == facts["hash"]
    assert set(found["protocols"]["inductive"]["per_class"]) == {f"test class {c:02d}" for c in range(6)}
    direct = clipspm(
        "eval", tmp_path / "r", "--test-episodes", 30, "--way", 3, "--unbalanced", "--source-pattern",
        r"^(.*v00)[0-3]$", "--json", home=home,
    )  # fmt: skip
    assert json.loads(direct.stdout) == found
    bias = clipspm("eval", tmp_path / "r", "--report-selection-bias", home=home)
    assert bias.returncode == 2 and "nothing to train" in bias.stderr
    no_rule = clipspm("eval", tmp_path / "r", "--source-disjoint", "--way", 3, home=home)
    assert no_rule.returncode == 2 and "--source-pattern" in no_rule.stderr
    wrong = clipspm("episodes", "show", tmp_path / "r" / "config.json", home=home)
    assert wrong.returncode == 1 and "is not a file of episodes" in wrong.stderr


def copied(runs: Path, to: Path) -> Path:
    return Path(shutil.copytree(runs, to / "runs"))


def test_the_terminal_shows_the_marks(runs: Path) -> None:
    shown = clipspm("results", runs, home=runs.parent).stdout
    assert "[a]" in shown and "[a]: not comparable" in shown


def test_runs_that_were_trained_otherwise_are_not_one_row(tmp_path: Path) -> None:
    """Another shot, other frames, other training classes: named or marked, never averaged."""
    other = fake_cache({"train": 5, "val": 5, "test": 6}, noise=1.5)
    for name, cache, config in (
        ("a", CACHE, tiny_config(episodes=16)),
        ("b", CACHE, tiny_config(episodes=16, shots=3, seed=1)),
        ("c", CACHE, tiny_config(episodes=16, frames=2, seed=2)),
        ("d", other, tiny_config(episodes=16, seed=3)),
    ):
        train(cache, config, tmp_path / name, log=silent)
        evaluate(tmp_path / name, cache, episodes=30, shots=1, log=silent)
    found = collect([tmp_path])
    assert all(len(score.seeds) == 1 for score in found.scores)
    names = {row[0] for row in found.table().rows}
    assert any("shots=3" in name for name in names) and any("frames=2" in name for name in names)
    notes = " ".join(found.table().notes)
    assert "other training videos" in notes and "2 frames" in notes


def test_settings_that_are_none_are_settings(tmp_path: Path) -> None:
    """No clipping of gradients is another row than the recipe's clipping; what the cache fills in is not."""
    for name, config in (
        ("a", tiny_config(episodes=16, queries=None, frames=None)),
        ("b", tiny_config(episodes=16, queries=None, frames=None, clip=None, seed=1)),
    ):
        train(CACHE, config, tmp_path / name, log=silent)
        evaluate(tmp_path / name, CACHE, episodes=30, log=silent)
    found = collect([tmp_path])
    assert {(score.row, score.seeds) for score in found.scores} == {
        ("clip-spm", (0,)),
        ("clip-spm (clip=null)", (1,)),
    }


def test_weights_chosen_by_hand_are_filed_and_marked_apart(kept: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(kept, tmp_path / "r"))
    Run.open(run).update_results(evaluations={})
    honest = evaluate(run, CACHE, episodes=30, log=silent)
    evaluate(run, CACHE, episodes=30, weights="step-000008", log=silent)
    evaluate(run, CACHE, episodes=30, frames=2, shuffle_time=True, log=silent)
    assert load_evaluation(run, honest.name).as_dict() == honest.as_dict()
    table = collect([tmp_path]).table()
    assert len(table.rows) == 3 and sum("[" in row[1] for row in table.rows) == 2
    assert any("selection by hand (step-000008)" in note for note in table.notes)
    assert any("2 frames, frames shuffled" in note for note in table.notes)


def test_a_later_evaluation_takes_nothing_away(kept: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(kept, tmp_path / "r"))
    whole = selection_bias(run, CACHE, episodes=30, log=silent)
    evaluate(run, CACHE, episodes=20, log=silent)
    evaluate(run, CACHE, episodes=30, protocols=("inductive",), log=silent)
    written = Run.open(run).results()["evaluations"]
    assert list(written)[-1] == whole.honest.name  # the newest is the last
    assert set(written[whole.honest.name]["protocols"]) == {"inductive", "transductive"}
    assert written[whole.honest.name]["selection_bias"] == whole.as_dict()
    assert load_evaluation(run).protocols == ("inductive", "transductive")


def test_evaluations_at_the_same_time_are_all_kept(kept: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(kept, tmp_path / "r"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: evaluate(run, CACHE, episodes=10, seed=seed, log=silent), range(4)))
    before = set(Run.open(kept).results().get("evaluations", {}))
    assert len(set(Run.open(run).results()["evaluations"]) - before) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "results.json").write_text("[]"),
        lambda run: (run / "results.json").write_text('{"evaluations": null}'),
        lambda run: (run / "results.json").write_text('{"evaluations": {"x": null}}'),
        lambda run: edit(run, lambda facts: facts.pop("cache_fingerprint")),
        lambda run: edit(run, lambda facts: facts.update(coverage="many")),
        lambda run: next(run.glob("eval-*.npz")).write_bytes(b""),
        lambda run: next(run.glob("eval-*.npz")).write_bytes(next(run.glob("eval-*.npz")).read_bytes()[:200]),
        lambda run: np.savez(next(run.glob("eval-*.npz")), inductive=np.zeros((1, 3), np.int16)),
        lambda run: np.savez(next(run.glob("eval-*.npz")), inductive=np.full((60, 3), np.nan)),
        lambda run: np.savez(next(run.glob("eval-*.npz")), other=np.zeros(3)),
    ],
)
def test_a_damaged_evaluation_costs_itself_only(runs: Path, tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    root = copied(runs, tmp_path)
    damage(root / "full-1")
    found = collect([root])
    assert found.skipped and all("full-1" in line and "\n" not in line for line in found.skipped)
    assert {score.seeds for score in found.scores} == {(0,), ()}


def edit(run: Path, change) -> None:  # type: ignore[no-untyped-def]
    edit_facts(run, change)


def test_the_same_seed_twice_is_said(runs: Path, tmp_path: Path) -> None:
    root = copied(runs, tmp_path)
    shutil.copytree(root / "full-0", root / "twin")
    assert collect([root]).skipped == ()  # the same predictions: the same run
    with np.load(next((root / "twin").glob("eval-*.npz"))) as file:
        arrays = {k: (x + 1) % 3 if x.dtype.kind == "i" else x for k, x in file.items()}
    del arrays["sha256"]
    np.savez(next((root / "twin").glob("eval-*.npz")), **arrays)
    assert "the same settings and seed but other predictions" in collect([root]).skipped[0]


def test_hostile_text_comes_through_every_format() -> None:
    name = "a_b & 50% #1 {x} ~^\\ <b> | `c` *d* [red]\nend"
    table = Table(("", "x"), [[name, "[a]"]], name, [f"[a]: {name}"])
    latex = table.latex()
    body = [line for line in latex.splitlines() if not line.startswith("%")]
    assert any(
        r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}" in line for line in body
    )
    assert not any(line.strip() == "end" for line in body)
    assert len(table.markdown().split("\n\n")[1].splitlines()) == 3
    console = Console(file=io.StringIO(), width=300)
    console.print(table)
    assert "[red]" in console.file.getvalue() and "[a]: a_b" in console.file.getvalue()  # type: ignore[attr-defined]


def test_resuming_keeps_the_same_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.step

    def step(self: Trainer, number: int) -> dict[str, float]:
        if number == 11:
            raise KeyboardInterrupt
        return original(self, number)

    config = tiny_config(episodes=160)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(CACHE, config, tmp_path / "r", log=silent, keep_checkpoints=3)
    with pytest.raises(UsageError, match="begun with --keep-checkpoints 3, not 5"):
        train(CACHE, config, tmp_path / "r", resume=True, log=silent, keep_checkpoints=5)
    train(CACHE, config, tmp_path / "r", resume=True, log=silent)
    assert Run.open(tmp_path / "r").checkpoints() == ["step-000008", "step-000014", "step-000020"]


@pytest.mark.parametrize(
    ("arguments", "part", "code"),
    [
        (("eval", "full-0", "--shots", 0), "shots is 0", 2),
        (("eval", "full-0", "--test-episodes", 10**11), "at most 10,000,000", 2),
        (("eval", "full-0", "--source-pattern", ""), "says no source", 2),
        (("train-heads", "--keep-checkpoints", -3), "--keep-checkpoints", 2),
    ],
)
def test_wrong_requests_are_one_line(
    runs: Path, tmp_path: Path, arguments: tuple, part: str, code: int
) -> None:
    cache = real_cache(tmp_path / "c.zarr", CACHE).path
    command, *rest = arguments
    rest = [runs / "full-0" if word == "full-0" else word for word in rest]
    result = clipspm(command, *rest, "--cache", cache, home=runs.parent)
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and part in lines[0]


# -------------------------------------------------------------------------------------------- 80 columns


def shown(table: Table, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table, soft_wrap=True)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def assert_unbroken(table: Table, width: int = 80) -> None:
    """Every cell stands on one line, and only what is wider than the terminal is wider."""
    lines = shown(table, width)
    for row in table.rows:
        for cell in row:
            assert any(cell in line for line in lines), (cell, lines)
    longest = max(len(cell) for row in table.rows for cell in row)
    assert all(len(line.rstrip()) <= max(width, longest + 4 + max(map(len, table.columns))) for line in lines)


def test_no_cell_is_broken_at_80_columns(runs: Path, kept: Path) -> None:
    found = collect([runs])
    result = load_evaluation(runs / "full-0")
    wide = [
        replace(s, column=s.column._replace(dataset=d)) for s in found.scores for d in ("hmdb51", "ucf101")
    ]
    many = replace(found, scores=tuple(wide))
    tables = [
        result.table(),
        *result.class_tables(),
        found.table(),
        many.table(),
        *found.class_tables(),
        compare(runs / "full-0", runs / "prototype-0").table(),
        compare([runs / "full-0", runs / "full-1"], [runs / "full-0", runs / "full-1"]).table(),
        selection_bias(kept, CACHE, episodes=20, log=silent).table(),
        replace(many, scores=many.scores).published_table(),
    ]
    for table in tables:
        if table is not None:
            assert_unbroken(table)
            assert max(len(line.rstrip()) for line in shown(table)) <= 80, shown(table)
    assert sum("───" in line for line in shown(many.table())) > 1  # columns that do not fit are below


def test_listings_are_not_broken_at_80_columns() -> None:
    name = "my-long-clips-of-actions-ViT-B-16-quickgelu-1a2b3c4d.zarr"
    facts = {"dataset": "folder", "videos": {"ok": 1360, "failed": 12}, "layers": ["3", "7", "11", "final"]}
    rows = [{"path": f"caches/{name}", "frames": 8, "views": 2, "bytes": 1e9, **facts}]
    rows.append({"path": "caches/broken.h5", "error": "no cache"})
    class_ = ClassReport("something with a rather long name", "train", 100, 90, 1, 2, 3)
    index: Any = SimpleNamespace(dataset="hmdb51", root="a folder " * 12)
    for table in (
        home_table(rows),
        benchmarks_table(describe_benchmarks()),
        CheckReport(index, (class_,), 6, True, ()).table(),
    ):
        assert_unbroken(table)
        assert all(len(line.rstrip()) <= 90 for line in shown(table))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab ", min_size=1, max_size=30), min_size=2, max_size=7),
    st.lists(st.integers(1, 90), min_size=1, max_size=4),
    st.integers(20, 120),
)
def test_no_cell_is_broken_at_any_width(columns: list[str], lengths: list[int], width: int) -> None:
    rows = [
        [f"{r}.{c}".ljust(max(4, length * (c + r) % 50), "x") for c in range(len(columns))]
        for r, length in enumerate(lengths)
    ]
    assert_unbroken(Table(columns, rows, "t"), width)


def test_columns_without_content_are_left_out() -> None:
    table = Table(("", "a", "b"), [("x", "", "1"), ("y", "", "")], "t")
    assert not any("a" in line for line in shown(table))
    assert "a" not in table.markdown() and table.csv().startswith(",a,b\n")
    body = [line for line in table.latex().splitlines() if line.endswith(r"\\")]
    assert body == [r" & b \\", r"x & 1 \\", r"y &  \\"]


def test_every_table_says_what_chance_is(runs: Path) -> None:
    for table in (collect([runs]).table(), load_evaluation(runs / "full-0").table()):
        assert any("chance: 33.3 % (3-way)" in note for note in table.notes)
        text = "\n".join(shown(table))
        assert not re.search("[0-9a-f]{9}", text)  # a name and at most eight digits of a hash
        assert "cache fake" in text


def test_by_class_on_the_command_line(runs: Path, tmp_path: Path) -> None:
    home = runs.parent
    text = clipspm("results", runs / "full-0", "--per-class", home=home).stdout
    assert "test class 03" in text and "clip-spm, fake 3-way 1-shot inductive: taken for" in text
    lines = list(csv.DictReader(io.StringIO(
        clipspm("results", runs / "full-0", runs / "full-1", "--per-class", "--format", "csv", home=home).stdout
    )))  # fmt: skip
    assert len(lines) == 2 * 6
    both = [load_evaluation(runs / f"full-{s}").classes() for s in (0, 1)]
    for i, line in enumerate(lines[:6]):
        assert line["class"] == both[0].names[i]
        assert float(line["accuracy_percent"]) == pytest.approx(
            100 * sum(b.confusion[i, i] for b in both) / sum(b.confusion[i].sum() for b in both)
        )
        counts = [int(line[f"taken for {name}"]) for name in both[0].names]
        assert counts == (both[0].confusion + both[1].confusion)[i].tolist()
    found = json.loads(clipspm("results", runs / "full-0", "--per-class", "--json", home=home).stdout)
    assert found["scores"][0]["confusion"] == both[0].confusion.tolist()
    assert found["scores"][0]["classes"][2]["accuracy"] == both[0].accuracies[2]


def test_eval_writes_every_format(runs: Path, tmp_path: Path) -> None:
    home = runs.parent
    cache = real_cache(tmp_path / "my cache.zarr", CACHE).path
    run = Path(shutil.copytree(runs / "prototype-0", tmp_path / "r"))
    asked = ("eval", run, "--cache", cache, "--test-episodes", 40)
    content = json.loads(clipspm(*asked, "--json", home=home).stdout)
    assert json.loads(clipspm(*asked, "--format", "json", home=home).stdout) == content
    (line, _) = csv.DictReader(io.StringIO(clipspm(*asked, "--format", "csv", home=home).stdout))
    assert float(line["accuracy_percent"]) == pytest.approx(
        100 * content["protocols"]["inductive"]["accuracy"]
    )
    assert line["episode_hash"] == content["episode_hash_full"]
    for format, part in (("latex", r"\toprule"), ("markdown", "|---|"), ("terminal", "|---|")):
        written = clipspm(*asked, "--format", format, "--out", tmp_path / format, home=home)
        assert written.returncode == 0 and part in (tmp_path / format).read_text()
    by_class = clipspm(*asked, "--per-class", "--format", "csv", home=home).stdout
    assert len(by_class.splitlines()) == 1 + 2 * 6 and "taken for test class 00" in by_class
    table = clipspm(*asked, "--per-class", home=home).stdout
    assert "cache my cache.zarr" in table and "prototype, transductive: taken for" in table
    refused = clipspm(*asked, "--report-selection-bias", "--format", "csv", home=home)
    assert refused.returncode == 2 and "has no CSV" in refused.stderr
