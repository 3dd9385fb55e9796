"""All heads and the eight HSMR/SPM/PADM combinations on the demo's three class splits, in one table.

``python -m benchmarks.accuracy``: 5-way 1-shot, three seeds, 2,000 test episodes of each split, inductive
and transductive, the default recipe at the demo's length, selection on validation classes. A drawn data set
and a tiny encoder: no accuracy of CLIP. Cells that are finished are kept below ``--out``; a stopped run goes
on where it was.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine, signed
from clipspm.cache.disk import write_json
from clipspm.cache.home import home
from clipspm.extract.demo.stage import extract_demo
from clipspm.progress import Say
from clipspm.tables import Table
from clipspm.train_heads import HEADS, AblationResult, TrainConfig, ablate, ablation_rows, resolve_config
from clipspm.train_heads.config import DEFAULT_HEAD
from clipspm.train_heads.demo import EPISODES
from clipspm.train_heads.episodes.pool import FeatureSource
from clipspm.train_heads.experiments.ablation_table import together

CLAIM = "On drawn videos CLIP-SPM beats every other head, and HSMR carries it (docs/results.md)."

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
#: TRX's own width, 1152, is for a ResNet's 2048 channels; it takes 14 times as long as the default
TRX_WIDTH = 128


def measure(
    sources: Sequence[FeatureSource],
    base: TrainConfig,
    *,
    out_dir: Path,
    seeds: Sequence[int],
    episodes: int,
    log: Say | None = None,
) -> list[AblationResult]:
    """Train and score every row on every source (one cache under several class splits); a result for each."""
    narrow = ablation_rows(base, heads=["trx"])["trx"].with_head(out_dim=TRX_WIDTH)
    return [
        ablate(
            source,
            base,
            out_dir=out_dir / f"split{k}",
            grid=True,
            heads=[name for name in HEADS if name not in (DEFAULT_HEAD, "trx")],
            extra={f"trx, width {TRX_WIDTH}": narrow},
            seeds=seeds,
            episodes=episodes,
            keep_weights=False,
            log=log,
        )
        for k, source in enumerate(sources)
    ]


def table(results: Sequence[AblationResult]) -> Table:
    """A row per configuration: both protocols, and what the full model has over it."""
    whole = together(results)
    rows = []
    for row in whole.rows:
        cells = [row.name]
        for protocol in whole.protocols:
            score, effect = row.estimate(protocol), whole.effect(row.name, protocol)
            apart = effects(results, row.name, protocol)
            cells.append(f"{100 * score.mean:.1f} ± {100 * score.half:.1f}")
            shown = f"{signed(effect.mean, effect.low, effect.high)}, {(apart > 0).sum()}/{apart.size}"
            cells.append("" if row is whole.rows[0] else shown)
        rows.append(cells)
    columns = ["", *(name for p in whole.protocols for name in (p, "full − row"))]
    facts = whole.facts
    request = f"{facts['way']}-way {facts['shots']}-shot"
    title = f"{request}, {facts['episodes']} test episodes of {len(results)} class splits"
    notes = [
        f"accuracy ± 95 % interval over episodes, in %, mean of seeds {','.join(map(str, whole.seeds))}",
        "full − row: points [95 % bootstrap interval, paired by episode; episodes share clips and classes],",
        "and in how many trainings (split and seed) full is ahead",
    ]
    return Table(columns, rows, title, notes)


def effects(results: Sequence[AblationResult], name: str, protocol: Any) -> np.ndarray:
    """Full minus row, [splits, seeds]."""
    return np.stack(
        [(r.rows[0].accuracies[protocol] - r[name].accuracies[protocol]).mean(1) for r in results]
    )


def as_dict(results: Sequence[AblationResult]) -> dict[str, Any]:
    """Plain values: the machine, all splits together, each split. Fractions, not per cent."""
    whole = together(results).as_dict()
    for row in whole["rows"]:
        for protocol, scores in row["protocols"].items():
            scores["effect_by_split_and_seed"] = effects(results, row["name"], protocol).tolist()
    return {**machine(), **whole, "per_split": [result.as_dict() for result in results]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few clips and a short training: does it run?")
    parser.add_argument("--seeds", default="0,1,2", help="of training (default 0,1,2)")
    parser.add_argument("--test-episodes", type=int, default=2000, help="of each class split (default 2000)")
    parser.add_argument("--out", type=Path, help="default: $CLIPSPM_HOME/benchmarks")
    parser.add_argument("--json", type=Path, default=None, help=f"default: {RESULTS.name} unless --quick")
    options = parser.parse_args()
    where = options.out or home() / "benchmarks"
    cache, splits = extract_demo(where / ("demo-quick" if options.quick else "demo"), quick=options.quick)
    shorter = {"episodes": EPISODES}
    if options.quick:
        shorter = {"episodes": 160, "val_every": 160, "val_episodes": 100}
    base = resolve_config(dataset=cache.spec.dataset, overrides={"way": 5, "shots": 1, **shorter})
    results = measure(
        [cache.with_splits(split) for split in splits],
        base,
        out_dir=where / ("accuracy-quick" if options.quick else "accuracy"),
        seeds=[int(seed) for seed in options.seeds.split(",")],
        episodes=options.test_episodes,
    )
    print(table(results).markdown())
    file = options.json or (None if options.quick else RESULTS)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, as_dict(results))


if __name__ == "__main__":
    main()
