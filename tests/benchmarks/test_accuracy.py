"""The table of ``benchmarks.accuracy``: every head and combination has its row, over all class splits."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import as_dict, effects, measure, table
from clipspm.train_heads import HEADS
from clipspm.train_heads.experiments.ablation_table import together
from tests.support.synthetic import fake_cache, silent, tiny_config


@pytest.mark.slow
def test_a_row_for_each_head_and_combination_over_all_splits(tmp_path: Path) -> None:
    sources = [fake_cache(noise=1.5), fake_cache({"train": 5, "val": 4, "test": 6}, noise=1.5)]
    base = tiny_config(episodes=8, val_every=8)
    results = measure(sources, base, out_dir=tmp_path, seeds=(0,), episodes=6, log=silent)
    whole = together(results)
    names = [row.name for row in whole.rows]
    assert names[0] == "full"
    assert len(set(names)) == 8 + len(HEADS) - 1
    assert sum(name.startswith("without ") for name in names) == 7
    assert whole["full"].accuracies["transductive"].shape == (1, 12)

    apart = effects(results, "without padm", "inductive")
    assert apart.shape == (2, 1)  # splits, seeds
    assert apart.mean() == pytest.approx(whole.effect("without padm").mean)

    shown = table(results)
    assert [row[0] for row in shown.rows] == names
    assert shown.markdown().count("\n|") == len(names) + 2
    found = as_dict(results)
    assert len(found["per_split"]) == 2
    assert found["cores"] >= 1
    own = [row["protocols"]["inductive"]["accuracy"] for row in found["rows"]]
    parts = [
        [row["protocols"]["inductive"]["accuracy"] for row in part["rows"]] for part in found["per_split"]
    ]
    assert own == pytest.approx(np.mean(parts, axis=0))  # as many episodes in each split
