"""The default head beside controls that need no training, on drawn worlds and on real clips.

``python -m benchmarks.evidence --on look`` (motion, look, both, told, lied: the demo's worlds, 5-way), or
``--on ut-mobilenetv2`` and ``--on ut-dinov2``: UT-Interaction, the 20 ways to train on three of its six
classes and score the other three (``$CLIPSPM_SHARED``, default ``../shared``). ``--on speed`` times scoring
with tables of all frame products and without (needs the test dependencies). ``--drops`` leaves out each
evidence and module in turn. Every row is scored on the same episodes, inductive; the best control is chosen
in hindsight, at each number of shots. Each class split has a training seed of its own. Finished trainings
are kept below ``$CLIPSPM_HOME/benchmarks``.
"""

import argparse
import random
import resource
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.recipes import ALONE, ut_interaction
from benchmarks.report import machine, signed
from clipspm.cache import Cache, Split
from clipspm.cache.disk import write_json
from clipspm.cache.home import home
from clipspm.extract.demo.stage import extract_demo
from clipspm.extract.demo.worlds import WORLDS
from clipspm.tables import Table
from clipspm.train_heads import (
    AblationResult,
    Data,
    EpisodeSpec,
    Run,
    ablate,
    build_head,
    draw,
    paired,
    resolve_config,
)
from clipspm.train_heads.evaluation.calibrate import calibrate
from clipspm.train_heads.evaluation.predict import evaluating, predict, recall_videos, scored
from clipspm.train_heads.evaluation.stats import reliability
from clipspm.train_heads.experiments.ablation_table import together
from clipspm.train_heads.experiments.rows import EVIDENCE, MODULES
from tests.support.synthetic import fake_cache

CLAIM = "On drawn worlds the default beats every control, by most where evidence is split (docs/evidence.md)."

#: real encoders of the shared folder, and how they are read
ENCODERS = {"ut-mobilenetv2": "mobilenetv2-in1k", "ut-dinov2": "dinov2-s14"}
CONTROLS = ("prototype", "frame-cosine", "frame-cosine-centered", "otam", "zero-shot", "tip-adapter")
POOL = "evidence"
PREVIOUS = "previous default"


def sources(on: str, where: Path, folds: int) -> Iterator[Cache]:
    """The cache under each class split."""
    if on in ENCODERS:
        cache = ut_interaction(where, ENCODERS[on], "auto")
        names = sorted(cache.class_names)
        ways = list(combinations(names, 3))
        random.Random(0).shuffle(ways)
        for train in ways[:folds]:
            splits: dict[str, Split] = {name: "train" if name in train else "test" for name in names}
            yield cache.with_splits(splits)
        return
    cache, splits_of_world = extract_demo(home() / "demo", world=on, on_message=print)
    for split in splits_of_world[:folds]:
        yield cache.with_splits(split)


def compared(
    on: str, shots: int, where: Path, options: argparse.Namespace, caches: Sequence[Cache]
) -> list[AblationResult]:
    """Every row at ``shots`` on each class split."""
    way = 3 if on in ENCODERS else 5
    asked = {"shots": shots, "way": way, "device": "cpu"}
    if options.train_episodes is not None:
        asked["episodes"] = options.train_episodes
    found = []
    for k, cache in enumerate(caches):
        base = resolve_config(dataset=cache.spec.dataset, overrides=asked)
        extra = {PREVIOUS: base.with_head(**ALONE)} if options.previous else {}
        if options.peers:
            extra["clip-fsar"] = resolve_config(
                dataset=cache.spec.dataset, overrides={**asked, "head": "clip-fsar"}
            )
        dropped = (*MODULES, *EVIDENCE, *cache.spec.layers) if options.drops else ()
        found.append(
            ablate(
                cache,
                base,
                out_dir=where / f"{shots}-shot" / f"fold{k}",
                seeds=(k,),
                episodes=options.episodes,
                protocols=("inductive",),
                heads=(POOL, *CONTROLS),
                drops=[name for name in dropped if len(cache.spec.layers) > 1 or name != "final"],
                extra=extra,
                log=lambda line: print(f"  {line}", flush=True) if ", seed " in line else None,
            )
        )
    return found


def calibration(
    results: Sequence[AblationResult], caches: Sequence[Cache], shots: int, episodes: int
) -> Table:
    """Expected calibration error of the default on test classes, without its temperature and with it."""
    errors: list[tuple[float, float]] = []
    for result, cache in zip(results, caches, strict=True):
        head = Run.open(result["full"].cells[0]).load_head()
        bank = Data(cache, "cpu").bank("test", head.layers)
        spec = EpisodeSpec(
            dataset=cache.spec.dataset, split="test", way=result["full"].config.way, shot=shots
        )
        drawn = draw(spec, bank.pool, episodes)
        logits = torch.cat(list(scored(head, bank, drawn, frames=8, protocol="inductive")))
        found = []
        for factor in (float(head.get_buffer("temperature")), 1.0):
            sure, chosen = (factor * logits).softmax(-1).max(-1)
            found.append(reliability(sure.numpy(), chosen.numpy() == drawn.query_labels)["ece"])
        errors.append((found[0], found[1]))
    rows = [(str(k), *(f"{x:.3f}" for x in pair)) for k, pair in enumerate(errors)]
    means = [f"{sum(x) / len(errors):.3f}" for x in zip(*errors, strict=True)]
    return Table((f"{shots}-shot, split", "ECE without temperature", "with"), [*rows, ("mean", *means)])


def summary(results: Sequence[AblationResult]) -> dict[str, Any]:
    """Accuracy of each row over all class splits, and the default minus each row."""
    whole = together(results)
    rows = {row.name: row for row in whole.rows}
    full = rows["full"].accuracies["inductive"].mean(0)
    found: dict[str, Any] = {"rows": {}}
    for name, row in rows.items():
        estimate, gap = row.estimate("inductive"), paired(full, row.accuracies["inductive"].mean(0))
        found["rows"][name] = {"accuracy": estimate.mean, "interval95": estimate.half, "lead": gap.as_dict()}
    best = max(
        (name for name in CONTROLS if name in rows), key=lambda name: rows[name].estimate("inductive").mean
    )
    found["best"], found["lead"] = best, found["rows"][best]["lead"]
    return found


def table(found: dict[int, dict[str, Any]], on: str) -> Table:
    """For people: in per cent and points, a column for each number of shots."""
    names = next(iter(found.values()))["rows"]
    lines = []
    for name in names:
        cells = []
        for one in found.values():
            row = one["rows"][name]
            lead = row["lead"]
            cells.append(
                f"{100 * row['accuracy']:.1f}"
                + ("" if name == "full" else f" ({signed(lead['mean'], lead['low'], lead['high'])})")
            )
        lines.append((name, *cells))
    best = [
        f"{one['best']}: {signed(one['lead']['mean'], one['lead']['low'], one['lead']['high'])}"
        for one in found.values()
    ]
    lines.append(("full minus the best control", *best))
    return Table((on, *(f"{shots}-shot" for shots in found)), lines, "", ("in brackets: full minus the row",))


def speed(episodes: int, direct: int) -> dict[str, float]:
    """Seconds and memory of scoring with tables, and of the first ``direct`` episodes without; they agree.

    5-way 5-shot, three layers of width 512, 8 frames, 1,200 videos of 12 classes that nobody trained on.
    """
    cache = fake_cache(
        {"train": 6, "test": 12},
        per_class=100,
        frames=8,
        dim=512,
        noise=4.0,
        extra_layers={"8:mean": 512, "11:cls": 512},
    )
    data = Data(cache, "cpu")
    head = build_head("evidence", dim=512, frames=8, layer_dims={"8:mean": 512, "11:cls": 512}).eval()
    calibrate(head, data.bank("train", head.layers), way=5, frames=8)
    bank = data.bank("test", head.layers)
    spec = EpisodeSpec(dataset="fake", split="test", way=5, shot=5, queries=1)
    drawn = draw(spec, bank.pool, episodes)
    how: dict[str, Any] = {"frames": 8, "protocol": "inductive"}
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fast = predict(head, bank, drawn, **how)
    tables = time.perf_counter() - began
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    began = time.perf_counter()
    with evaluating(head):
        known = recall_videos(head, bank, drawn, 8)
    made = time.perf_counter() - began
    began = time.perf_counter()
    slow = list(scored(head, bank, drawn[:direct], **how))  # too few episodes for tables
    plain = (time.perf_counter() - began) * episodes / direct
    again = list(scored(head, bank, drawn[:direct], known=known, **how))
    gap = float((torch.cat(slow) - torch.cat(again)).abs().max())
    same = float((torch.cat(slow).argmax(-1).numpy() == fast[:direct]).mean())
    return {
        "tables_seconds": tables,
        "of_which_making": made,
        "direct_seconds": plain,
        "more_memory_mb": memory,
        "largest_gap_of_logits": gap,
        "same_classes": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", choices=[*WORLDS, *ENCODERS, "speed"], required=True)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--folds", type=int, default=20, help="class splits, at most")
    parser.add_argument("--episodes", type=int, default=1000, help="test episodes of each class split")
    parser.add_argument("--train-episodes", type=int, help="default: the recipe's")
    parser.add_argument("--drops", action="store_true", help="each evidence and module left out in turn")
    parser.add_argument("--previous", action="store_true", help="the previous default too")
    parser.add_argument("--peers", action="store_true", help="CLIP-FSAR too")
    parser.add_argument("--ece", action="store_true", help="calibration of the default, too")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    options = parser.parse_args()
    if options.on == "speed":
        for name, value in speed(10_000, 100).items():
            print(f"{name}: {value:.4g}")
        return
    where = home() / "benchmarks" / f"evidence-{options.on}"
    caches, found = list(sources(options.on, where, options.folds)), {}
    for shots in options.shots:
        results = compared(options.on, shots, where, options, caches)
        found[shots] = summary(results)
        if options.ece:
            Console().print(calibration(results, caches, shots, options.episodes))
    Console().print(table(found, options.on))
    if options.json:
        write_json(
            options.json, {"machine": machine(), "options": vars(options) | {"json": None}, "found": found}
        )


if __name__ == "__main__":
    main()
