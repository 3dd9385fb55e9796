"""Which training recipe is best on class folds: each variant beside the default, on the same episodes.

``python -m benchmarks.recipes --on demo`` takes six folds of the demo's non-test classes (12 train, 6 are
scored, 5-way); ``--on ut`` takes UT-Interaction read with a MobileNetV2 (``$CLIPSPM_SHARED``, default
``../shared``): 10 of the 20 ways to train on three of its six classes and score the other three, and
``--on ut-report`` the 10 others. A fold has no validation classes, so every row is scored with its last
weights: no number here is the best of several checkpoints. Trainings that are finished are kept below
``$CLIPSPM_HOME/benchmarks``; a stopped study goes on where it was.
"""

import argparse
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine, signed
from clipspm.cache import Cache, Split, open_cache
from clipspm.cache.disk import write_json
from clipspm.cache.home import home
from clipspm.extract.demo import CLASSES, DEMO_SPLITS, PAIRS
from clipspm.extract.demo.stage import extract_demo
from clipspm.extract.pipeline import ExtractConfig, extract
from clipspm.tables import Table
from clipspm.train_heads import (
    AblationResult,
    Run,
    TrainConfig,
    ablate,
    evaluate,
    paired,
    resolve_config,
)
from clipspm.train_heads.config import Precision
from clipspm.train_heads.experiments.ablation_table import Row, together

CLAIM = "No variant is clearly better than the default on both class folds (docs/recipes.md)."

Fold = dict[str, Split]


def head(**settings: Any) -> dict[str, Any]:
    """Overrides of the head's settings."""
    return {"head_config": settings}


#: name -> what differs from the default recipe
VARIANTS: dict[str, dict[str, Any]] = {
    "lr 3e-4": {"lr": 3e-4},
    "lr 3e-3": {"lr": 3e-3},
    "weight decay 0": {"weight_decay": 0.0},
    "weight decay 0.1": {"weight_decay": 0.1},
    "adam": {"optimizer": "adam", "weight_decay": 0.0},
    "constant schedule": {"schedule": "constant"},
    "no warm-up": {"warmup": 0.0},
    "no clipping": {"clip": None},
    "dropout 0": head(dropout=0.0, ffn_dropout=0.0),
    "dropout 0.4": head(dropout=0.4),
    "half as long": {"episodes": 1200},
    "twice as long": {"episodes": 4800},
    "trained inductively": {"protocol": "inductive"},
    "no virtual classes": {"mix_motion": 0.0},
    "OTAM": head(matcher="otam"),
    "without D0": head(motion_weight=0.0),
    "without HSMR": head(hsmr=False),
    "without SPM": head(spm=False),
    "without PADM": head(padm=False),
    "without SPM and PADM": head(spm=False, padm=False),
    "D2 weighs 0.1": head(d2_weight=0.1),
    "D1 and D2 weigh 0.25": head(d1_weight=0.25, d2_weight=0.25),
    "D1 and D2 weigh 0.1": head(d1_weight=0.1, d2_weight=0.1),
    "D1 and D2 weigh 0.05": head(d1_weight=0.05, d2_weight=0.05),
    "blocks start as the identity": head(zero_init=True),
    "the same, D1 and D2 weigh 0.1": head(zero_init=True, d1_weight=0.1, d2_weight=0.1),
}
#: the default of before version 0.3, which these folds are about: the modules stand alone
ALONE = {"pool": False, "matching_input": "refined-centered", "d1_weight": 0.05, "d2_weight": 0.05}
#: what the default was before these folds chose: ``--former`` repeats their tables
FORMER = VARIANTS["D1 and D2 weigh 0.25"]


def varied(base: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """``base`` with the ``changes`` of a variant."""
    settings = {key: value for key, value in changes.items() if key != "head_config"}
    return replace(base, **settings).with_head(**changes.get("head_config", {}))


def demo_folds() -> list[Fold]:
    """Two folds of each class split of the demo: its nine non-test pairs, cut into six and three."""
    folds = []
    for r in range(2):
        for k, split in enumerate(DEMO_SPLITS):
            pairs = [pair for pair in PAIRS if pair[0] not in split["test"]]
            random.Random(10 * k + r).shuffle(pairs)
            names = [CLASSES[folder] for pair in pairs for folder in pair]
            folds.append(_fold(names[:12], names[12:]))
    return folds


def ut_folds(names: Sequence[str], *, report: bool) -> list[Fold]:
    """Half of the ways to cut six classes in two: a seeded half chooses, the other one reports."""
    ways = list(combinations(sorted(names), 3))
    random.Random(0).shuffle(ways)
    half = ways[len(ways) // 2 :] if report else ways[: len(ways) // 2]
    return [_fold(train, [name for name in names if name not in train]) for train in half]


def _fold(train: Sequence[str], scored: Sequence[str]) -> Fold:
    return {**dict.fromkeys(train, "train"), **dict.fromkeys(scored, "test")}


def ut_interaction(where: Path, encoder: str = "mobilenetv2-in1k", layers: str = "final") -> Cache:
    """The 120 clips through an encoder of ``$CLIPSPM_SHARED`` (default ``../shared``), extracted once."""
    shared = Path(os.environ.get("CLIPSPM_SHARED", "../shared")).resolve()
    config = ExtractConfig(
        dataset="folder",
        videos=shared / "videos" / "ut_interaction",
        model=f"local-dir:{shared / 'weights' / encoder}",
        layers=layers,
        precision="fp32",
        out=where / "cache.zarr",
    )
    return open_cache(extract(config, on_start=print).path)


def study(
    sources: Sequence[Cache], base: TrainConfig, out_dir: Path, episodes: int, **rows: Any
) -> list[AblationResult]:
    """``base`` and the ``rows`` (``heads`` and ``extra`` of :func:`ablate`) on every fold, inductive."""
    found = []
    for k, source in enumerate(sources):
        print(f"fold {k + 1} of {len(sources)}", flush=True)
        found.append(
            ablate(
                source,
                base,
                out_dir=out_dir / f"fold{k}",
                episodes=episodes,
                protocols=("inductive",),
                log=_only_rows,
                **rows,
            )
        )
    return found


def arithmetic(
    sources: Sequence[Cache], base: TrainConfig, out_dir: Path, episodes: int, precisions: Sequence[Precision]
) -> list[AblationResult]:
    """``base`` trained and scored in other precisions, and its float32 weights scored in them."""
    trained = {f"trained in {p}": replace(base, precision=p) for p in precisions}
    results = study(sources, base, out_dir, episodes, extra=trained)
    found = []
    for source, result in zip(sources, results, strict=True):
        full = result.rows[0]
        scored = []
        for p in precisions:
            weights = Run.open(full.cells[0]).load_head("last")
            options: dict[str, Any] = {"protocols": ("inductive",), "precision": p, "device": base.device}
            again = evaluate(weights, source, episodes=result.episodes, **options)
            scored.append(Row(f"scored in {p}", base, full.cells, {"inductive": again.accuracies()[None]}))
        found.append(replace(result, rows=(*result.rows, *scored)))
    return found


def _only_rows(line: str) -> None:
    """Of what is logged, the line that a row begins with."""
    if ", seed " in line:
        print(f"  {line}", flush=True)


def differences(results: Sequence[AblationResult]) -> list[dict[str, Any]]:
    """By row: accuracy over all folds, and row minus the first row, paired by episode and by fold."""
    whole, found = together(results), []
    for row in whole.rows:
        change = paired(*(r.accuracies["inductive"].mean(0) for r in (row, whole.rows[0])))
        by_fold = [-result.effect(row.name).mean for result in results]
        accuracy = row.estimate("inductive")
        found.append(
            {
                "name": row.name,
                "accuracy": accuracy.mean,
                "interval95": accuracy.half,
                "change": change.as_dict(),
                "change_by_fold": by_fold,
                "better_folds": sum(value > 0 for value in by_fold),
                "changes": row.config.differences(whole.rows[0].config),
            }
        )
    return found


def table(found: Sequence[Mapping[str, Any]], title: str) -> Table:
    """For people: in per cent and points."""
    rows = []
    for i, row in enumerate(found):
        change, folds = row["change"], 100 * np.array(row["change_by_fold"])
        difference = signed(change["mean"], change["low"], change["high"])
        shown = [difference, f"{folds.std(ddof=1):.1f}", f"{row['better_folds']}/{folds.size}"]
        rows.append([row["name"], f"{100 * row['accuracy']:.1f}", *(shown if i else [""] * 3)])
    notes = (
        "row minus default, points [95 % bootstrap interval over episodes, which share clips and classes]",
        "sd: standard deviation of that difference over folds; better: folds in which the row is better",
    )
    return Table(("", "accuracy", "row − default", "sd", "better"), rows, title, notes)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("--on", choices=("demo", "ut", "ut-report"), required=True)
    parser.add_argument("--only", action="append", choices=tuple(VARIANTS), help="these variants only")
    parser.add_argument("--precision", action="append", choices=("bf16", "fp16"), help="instead of variants")
    parser.add_argument("--head", action="append", default=[], help="a row for this head too")
    parser.add_argument("--former", action="store_true", help="beside the former default")
    parser.add_argument("--folds", type=int, help="the first N folds only")
    parser.add_argument("--train-episodes", type=int, help="of the default; others in proportion")
    parser.add_argument("--episodes", type=int, default=1000, help="scored on each fold")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers in full")
    options = parser.parse_args()
    where = home() / "benchmarks" / options.on.removesuffix("-report")
    if options.on == "demo":
        cache, folds = extract_demo(where, on_message=print)[0], demo_folds()
    else:
        cache = ut_interaction(where)
        folds = ut_folds(cache.class_names, report=options.on == "ut-report")
    way = 5 if options.on == "demo" else 3
    base = resolve_config(overrides={"way": way, "shots": 1, "device": "cpu"}).with_head(**ALONE)
    base = varied(base, FORMER if options.former else {})
    names = list(VARIANTS) if options.only is None else options.only
    changed = [varied(base, VARIANTS[name]) for name in names]
    length = (options.train_episodes or base.episodes) / base.episodes
    base, *changed = (replace(c, episodes=round(length * c.episodes)) for c in (base, *changed))
    rows = dict(zip(names, changed, strict=True))
    sources = [cache.with_splits(fold) for fold in folds[: options.folds]]
    if options.precision:
        results = arithmetic(sources, base, where / "precision", options.episodes, options.precision)
    else:
        kept = {"heads": options.head, "extra": rows, "keep_weights": False}
        results = study(sources, base, where / options.on, options.episodes, **kept)
    found = differences(results)
    request = f"{base.way}-way 1-shot, inductive, {base.episodes} training episodes"
    title = f"{options.on}, {request}; {len(results)} folds of {options.episodes} scored episodes"
    print(table(found, title).markdown())
    if options.json:
        facts = {"on": options.on, "default": base.as_dict(), "episodes_per_fold": options.episodes}
        hashes = [result.facts["episode_hash"] for result in results]
        write_json(options.json, {**machine(), **facts, "episode_hashes": hashes, "rows": found})


if __name__ == "__main__":
    main()
