"""What the package survives: hostile files, SIGKILL, and thousands of clips in bounded memory.

``python -m benchmarks.faults`` runs the campaigns that the tests run short (needs the test dependencies);
``--soak 5000`` extracts that many clips and follows the memory of all processes; ``--all`` attacks the
command line of both stages in every way that is known: a table of how many tries held.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

CLAIM = "Hostile files and kills cost a video or the shards in flight, never a cache (docs/extraction.md)."

# decode workers import this module as they start: what loads torch is imported where it is used

MB = 1e6


def main() -> None:
    """Run what was asked for and print a table."""
    from benchmarks.report import machine
    from clipspm.cache.disk import write_json
    from tests.support.campaigns import fault_campaign, kill_campaign

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="hostile folders, each with other names and places"
    )
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs per format")
    parser.add_argument(
        "--soak", type=int, default=0, metavar="CLIPS", help="only follow memory over so many clips"
    )
    parser.add_argument("--all", action="store_true", help="every attack on the command line instead")
    parser.add_argument("--tries", type=int, default=10, help="of each attack that takes random places")
    parser.add_argument("--only", nargs="*", metavar="ATTACK", help="only these of --all")
    parser.add_argument(
        "--code", type=Path, metavar="FOLDER", help="attack the package clipspm in this folder instead"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    if options.all:
        tallies = attack(options.tries, options.code, options.only)
        results["attacks"] = [vars(tally) for tally in tallies]
    elif options.soak:
        results["soak"] = found = soak(options.soak)
        rows = [[str(at), f"{main:.0f}", f"{workers:.0f}"] for at, main, workers in found["memory_mb"]]
        print(
            _text(("clips", "main process, MB", "workers, MB"), rows),
            f"\n{found['clips_per_s']:.0f} clips/s",
        )
    else:
        rows = []
        for seed in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                faults = fault_campaign(Path(folder), seed=seed, format=("zarr", "hdf5")[seed % 2])
            results[f"faults, seed {seed}"] = {**faults.__dict__}
            rows.append(
                [f"hostile files, seed {seed}", f"{faults.hostile} of {faults.files}", *_verdict(faults)]
            )
        for form in ("zarr", "hdf5"):
            with tempfile.TemporaryDirectory() as folder:
                killed = kill_campaign(Path(folder), kills=options.kills, format=form)
            results[f"kills, {form}"] = {**killed.__dict__}
            rows.append([f"SIGKILL, {form}", f"{killed.kills} kills", *_verdict(killed)])
        print(_text(("campaign", "size", "seconds", "wrong"), rows))
    if options.json:
        write_json(options.json, json.loads(json.dumps(results)))


def attack(tries: int, code: Path | None, only: Sequence[str] | None) -> list[Any]:
    """Every attack of :mod:`benchmarks.attacks`; prints a row for each as it ends, then what did not hold."""
    from benchmarks import attacks
    from tests.support.campaigns import kill_campaign

    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = attacks.build(folder / "place", code and code.resolve())

        def killed_extraction() -> list[Any]:
            with attacks.tallied("kills: extract") as tally:
                found = kill_campaign(folder / "kills", kills=tries)
                tally.tried, tally.wrong = found.kills, list(found.wrong)
            return [tally]

        todo: dict[str, Callable[[], list[Any]]] = {
            "hostile-files": lambda: attacks.hostile_files(place, 0),
            "hostile-caches": lambda: [attacks.hostile_caches(place)],
            "hostile-runs": lambda: [attacks.hostile_runs(place)],
            "flipped-caches": lambda: [attacks.flipped_caches(place, tries, rng)],
            "flipped-runs": lambda: [attacks.flipped_runs(place, 2 * tries, rng)],
            "killed-training": lambda: [attacks.killed_training(place, tries, rng)],
            "killed-ablation": lambda: [attacks.killed_ablation(place, tries // 2, rng)],
            "killed-results": lambda: [attacks.killed_results(place, tries, rng)],
            "killed-workers": lambda: [attacks.killed_workers(place, tries // 2, rng)],
            "two-at-once": lambda: [attacks.two_at_once(place, max(1, tries // 5))],
            "full-disk": lambda: [attacks.full_disk(place)],
        }
        if code is None:
            todo["killed-extraction"] = killed_extraction
        found: list[Any] = []
        for label, run in todo.items():
            if only and label not in only:
                continue
            for tally in run():
                found.append(tally)
                print(f"{tally.name:<58} {tally.held:>4} of {tally.tried:<4} held {tally.seconds:6.0f} s")
                sys.stdout.flush()
    for tally in found:
        for line in tally.wrong:
            print(f"{tally.name}: {line}")
    return found


def _verdict(report: Any) -> list[str]:
    return [f"{report.seconds:.0f}", "; ".join(report.wrong) or "nothing"]


def _text(columns: Sequence[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [zip(row, widths, strict=True) for row in (columns, *rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in line) for line in lines)


def soak(clips: int) -> dict[str, Any]:
    """Extract ``clips`` small clips; resident memory (MB) of this process and of its workers on the way."""
    from clipspm.cache.verify import verify
    from clipspm.extract import extract
    from tests.support.campaigns import tiny_config
    from tests.support.media import numbered_frames, write_video

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [write_video(folder / f"{i}.mp4", numbered_frames(30, 240, 320)) for i in range(4)]
        for i in range(clips):
            target = folder / "videos" / f"class {i % 10}" / f"{i:05d}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(sources[i % 4])
        config = tiny_config(folder, folder / "videos", out=folder / "c.zarr", shard_size=256)
        memory: list[tuple[int, float, float]] = []
        step = max(1, clips // 10)

        def follow(progress: Any) -> None:
            done = progress.done + progress.failed
            if done % step == 0 and (not memory or memory[-1][0] != done):
                memory.append((done, _resident("self") / MB, _children() / MB))

        start = time.perf_counter()
        result = extract(replace(config, batch_size=64), on_progress=follow)
        seconds = time.perf_counter() - start
        assert result.done == clips
        assert verify(result.path).ok
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    return {"clips": clips, "clips_per_s": clips / seconds, "memory_mb": memory, "peak_mb": peak}


def _resident(pid: str) -> int:
    return int(Path("/proc", pid, "statm").read_text().split()[1]) * resource.getpagesize()


def _children() -> int:
    """Resident bytes of the processes that this one started."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            try:
                total += _resident(pid)
            except OSError:  # it just ended
                continue
    return total


if __name__ == "__main__":
    main()
