"""What ``clipspm demo`` says of a world."""

from __future__ import annotations

import numpy as np
import pytest

from clipspm.train_heads.config import resolve_config
from clipspm.train_heads.demo import CONTROLS, READERS, SHUFFLED, DemoResult, worlds_table
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec
from clipspm.train_heads.experiments.ablation_table import AblationResult, Row


def _result(dataset: str, **accuracies: float) -> DemoResult:
    """Rows with these accuracies (0.3 if not given), which alternate by 0.1 from episode to episode."""
    controls = (*CONTROLS, *(READERS if dataset in ("demo-told", "demo-lied") else ()))
    names = ("full", *controls, SHUFFLED)
    sway = np.tile([0.05, -0.05], 50)
    rows = tuple(
        Row(name, resolve_config(), (), {"inductive": (accuracies.get(name, 0.3) + sway)[None]})
        for name in names
    )
    facts = {
        "dataset": dataset,
        "way": 5,
        "shots": 1,
        "episode_hash": "0",
        "cache_name": "c",
        "selection": "val",
    }
    spec = EpisodeSpec(dataset=dataset, split="test", way=5, shot=1, queries=1, seed=0)
    episodes = Episodes.__new__(Episodes)
    object.__setattr__(episodes, "spec", spec)
    result = AblationResult(rows, (0,), episodes, {**facts, "episodes": 100, "split": "test"}, 0)
    return DemoResult(result, (result,), controls)


def test_on_motion_the_finding_is_the_lead_over_the_prototype() -> None:
    result = _result("demo", full=0.5, prototype=0.2, otam=0.6)
    assert result.convincing
    assert "on unseen actions the default model is right in 50.0%" in result.sentence()
    assert "+30.0 points [+30.0, +30.0] against the mean-frame prototype" in result.sentence()
    assert set(result.as_dict()["summary"]) == {"full", "prototype", "margin", "interval"}
    assert not _result("demo", full=0.2, prototype=0.2).convincing


@pytest.mark.parametrize(("best", "lead", "convincing"), [("otam", -10, False), ("frame-cosine", 0, True)])
def test_elsewhere_it_is_the_lead_over_the_best_control(best: str, lead: int, convincing: bool) -> None:
    accuracies = {"full": 0.5, best: 0.5 - lead / 100}
    result = _result("demo-look", **accuracies)
    assert (result.best, result.convincing) == (best, convincing)
    assert "on unseen classes" in result.sentence()
    said = f"{lead:+.1f} points [{lead:+.1f}, {lead:+.1f}] against the best control here, {best}"
    assert said in result.sentence()
    summary = result.as_dict()["summary"]
    assert summary[best] == pytest.approx(0.5 - lead / 100)
    assert summary["margin"] == pytest.approx(lead / 100)


def test_controls_that_read_names_count_where_names_mean_something() -> None:
    told = _result("demo-told", full=0.5, **{"tip-adapter": 0.7})
    assert told.best == "tip-adapter"
    assert set(told.margins) == {*CONTROLS, *READERS, SHUFFLED}
    assert set(_result("demo-both").margins) == {*CONTROLS, SHUFFLED}


def test_the_table_of_worlds_has_a_row_for_each() -> None:
    results = {
        "motion": _result("demo", full=0.6, otam=0.4),
        "told": _result("demo-told", **{"zero-shot": 0.5}),
    }
    table = worlds_table(results)
    assert list(table.columns) == [
        "world", "full", *CONTROLS, *READERS, "best control", "full − best (points)",
    ]  # fmt: skip
    motion, told = table.rows
    assert motion[0] == "motion" and motion[-2:] == ["otam", "+20.0 [+20.0, +20.0]"]
    assert motion[1].startswith("60.0 ±") and motion[6:8] == ["", ""]  # no reader there
    assert told[-2:] == ["zero-shot", "-20.0 [-20.0, -20.0]"]
