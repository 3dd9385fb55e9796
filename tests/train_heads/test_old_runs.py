"""Runs that version 0.2.0 wrote open, load and score as they did: ``runs-0.2.zip``, trained on the fake cache."""

import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from clipspm.errors import ClipspmError
from clipspm.train_heads.doctor import examine
from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.evaluation.result import load_evaluation
from clipspm.train_heads.experiments.results import collect
from clipspm.train_heads.runs import Run
from tests.support import synthetic
from tests.support.edits import edit_json
from tests.support.synthetic import fake_cache, silent

RUNS = ("default", "official", "clip-fsar", "tip-adapter")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    with ZipFile(Path(synthetic.__file__).with_name("runs-0.2.zip")) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_version_0_2_scores_as_it_did(runs: Path, name: str) -> None:
    run = Run.open(runs / name)
    assert run.finished
    before = load_evaluation(runs / name)
    assert before.facts["version"] == "0.2.0"
    after = evaluate(run, fake_cache(), episodes=40, log=silent, device="cpu")
    assert after.episodes.full_hash == before.episodes.full_hash
    for protocol in ("inductive", "transductive"):
        np.testing.assert_array_equal(after.predictions[protocol], before.predictions[protocol])


def test_runs_of_version_0_2_stand_in_tables_and_are_whole(runs: Path) -> None:
    found = collect([runs])
    assert not found.skipped
    assert {path.name for score in found.scores for path in score.runs} == set(RUNS)
    assert all(file.state != "damaged" for name in RUNS for file in examine(runs / name).files)


def test_a_run_whose_head_is_not_here_is_whole(runs: Path) -> None:
    """Nor is code of others run to look at files."""
    file = runs / "default" / "config.json"
    edit_json(file, lambda content: content["config"].update(head="this:Head", head_config={}))
    found = {finding.name: finding for finding in examine(runs / "default").files}
    assert {found[name].state for name in ("config.json", "best.safetensors")} == {"no digest"}
    assert "this" not in sys.modules
    with pytest.raises(ClipspmError, match="needed a subclass of clipspm's Head|cannot be imported"):
        Run.open(runs / "default").build_head()


def test_a_setting_that_is_gone_is_named(runs: Path) -> None:
    edit_json(
        runs / "default" / "config.json",
        lambda content: content["config"]["head_config"].update(text_fusion=True),
    )
    with pytest.raises(ClipspmError, match="unknown setting 'text_fusion'"):
        Run.open(runs / "default").build_head()
