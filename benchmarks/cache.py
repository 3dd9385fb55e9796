"""How fast a cache opens, loads, and gives random videos, and what memory that takes.

``python -m benchmarks.cache [--quick] [--json FILE]`` writes synthetic caches of HMDB51's and of SSv2's size
(random features, the width of ViT-B/16) and measures in fresh processes: Zarr, HDF5 and plain NumPy. Files
are in the page cache: this is not about disks. The second table is of training: its peak memory (all of it,
PyTorch too, beside twice the cache's size and 2 GiB), and the batches of 16 episodes of 5-way 1-shot that it
gathers, with the features held in memory and left in the files.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine
from clipspm.cache import CacheSpec, CacheWriter, Plan, VideoRecord, open_cache
from clipspm.cache.disk import write_json
from clipspm.cache.reader import size_on_disk
from clipspm.cache.transform import convert
from clipspm.cache.verify import verify

CLAIM = "Training takes less memory than twice the cache and 2 GiB (docs/speed.md)."

#: name -> videos, classes, layers
SIZES = {"HMDB51": (6766, 51, ("3", "7", "11", "final")), "SSv2": (82_000, 100, ("final",))}
FRAMES, WIDTH, VIDEOS = 8, 512, 50

_MEASURE = """
import json, sys, time
import numpy as np
from clipspm.cache import open_cache
path, runs = sys.argv[1], int(sys.argv[2])
opened, start = [], time.perf_counter()
for _ in range(3):
    start = time.perf_counter()
    cache = open_cache(path)
    opened.append(time.perf_counter() - start)
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
before = peak()
start = time.perf_counter()
arrays = [cache.features(layer) for layer in cache.spec.layers]
loaded = time.perf_counter() - start
after = peak()
rng, gathered = np.random.default_rng(0), []
for _ in range(runs):
    rows = rng.choice(len(cache.good), 50, replace=False)
    start = time.perf_counter()
    cache.features("final")[rows]
    gathered.append(time.perf_counter() - start)
print(json.dumps({"open": sorted(opened)[1], "load": loaded, "gather": sorted(gathered)[runs // 2],
                  "bytes": sum(a.nbytes for a in arrays), "memory": (after - before) * 1024}))
"""

_TRAIN = """
import json, sys, tempfile, time
from pathlib import Path
from clipspm.cache import open_cache
from clipspm.train_heads import Data, EpisodeSpec, draw, evaluate, resolve_config, train
from clipspm.train_heads.episodes import bank as module
from clipspm.train_heads.evaluation.predict import make_batch
path, mapped, steps = sys.argv[1], sys.argv[2] == "mapped", int(sys.argv[3])
if mapped:
    module.free_memory = lambda device: 0
cache = open_cache(path)
data = Data(cache)
count = {"episodes": 16 * steps, "val_every": 16, "val_episodes": 25 * steps}
config = resolve_config(overrides={**count, "device": "cpu"})
with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "run"
    train(data, config, run, log=lambda line: None)
    evaluate(run, data, episodes=50 * steps, log=lambda line: None)
bank, taken = data.bank("train"), []
spec = EpisodeSpec(dataset="synthetic", split="train", queries=4)
for i in range(20):
    episodes = draw(spec, bank.pool, 16, 16 * i)
    start = time.perf_counter()
    make_batch(bank, episodes, 8)
    taken.append(time.perf_counter() - start)
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
kib = lambda key: int(status[key].split()[0])
print(json.dumps({"gather": sorted(taken)[10], "peak": 1024 * kib("VmHWM"),
                  "own": 1024 * kib("RssAnon")}))
"""


def write_synthetic(path: Path, videos: int, classes: int, layers: tuple[str, ...]) -> None:
    """A finished cache of random features."""
    names = tuple(f"class {c:03d}" for c in range(classes))
    splits: dict[str, Any] = {n: ("train", "val", "test")[i % 3] for i, n in enumerate(names)}
    rows = tuple(
        VideoRecord(f"{names[i * classes // videos]}/{i:06d}", f"{i:06d}.webm", names[i * classes // videos],
                    splits[names[i * classes // videos]])
        for i in range(videos)
    )  # fmt: skip
    spec = CacheSpec(
        dataset="synthetic", model="none", pretrained="", architecture_sha256="", weights_sha256="",
        activation="", precision="fp32", layers=layers, dims=dict.fromkeys(layers, WIDTH), frames=FRAMES,
        views=1, flip=False, resize=256, crop=224, interpolation="bicubic",
        mean=(0.5,), std=(0.5,), prompts=("{}",),
    )  # fmt: skip
    text = np.zeros((classes, 1, WIDTH), np.float32)
    writer = CacheWriter(path, spec, Plan(rows, names, splits), text)
    rng = np.random.default_rng(0)
    for shard, numbers in writer.pending_shards():
        outcomes = {
            row: replace(
                writer.records[row], status="ok", frames=75, fps=12.0, indices=tuple(range(4, 76, 9)),
                pts_seconds=tuple(i / 12 for i in range(4, 76, 9)), backend="pyav",
            )
            for row in numbers
        }  # fmt: skip
        shape = (len(numbers), 1, FRAMES, WIDTH)
        writer.commit(shard, outcomes, {k: rng.normal(size=shape).astype(np.float16) for k in layers})
    writer.finish()


def measure(path: Path, runs: int) -> dict[str, float]:
    """Medians in seconds, in a process of its own."""
    return _apart(_MEASURE, path, runs)


def training(path: Path, steps: int, *, mapped: bool) -> dict[str, float]:
    """Memory in bytes and seconds per batch gathered, of a training in a process of its own."""
    found = _apart(_TRAIN, path, "mapped" if mapped else "held", steps)
    return {**found, "allowed": 2 * size_on_disk(path) + 2 * 2**30}


def _apart(code: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(found.stdout))


def plain(path: Path, runs: int) -> dict[str, float]:
    """The same features as one ``.npy`` per layer, loaded by NumPy: the limit."""
    cache = open_cache(path)
    folder = path.with_suffix(".npy")
    folder.mkdir()
    for layer in cache.spec.layers:
        np.save(folder / f"{layer}.npy", cache.features(layer))
    start = time.perf_counter()
    arrays = [np.load(folder / f"{layer}.npy") for layer in cache.spec.layers]
    loaded = time.perf_counter() - start
    rng, gathered = np.random.default_rng(0), []
    for _ in range(runs):
        rows = rng.choice(len(arrays[-1]), VIDEOS, replace=False)
        start = time.perf_counter()
        arrays[-1][rows]
        gathered.append(time.perf_counter() - start)
    return {"open": 0.0, "load": loaded, "gather": statistics.median(gathered)}


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smaller cache only, one layer")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    runs = 20 if options.quick else 200
    rows, trained, results = [], [], []
    for name, (videos, classes, layers) in list(SIZES.items())[: 1 if options.quick else None]:
        layers = layers[-1:] if options.quick else layers
        with tempfile.TemporaryDirectory() as folder:
            zarr = Path(folder) / "c.zarr"
            write_synthetic(zarr, videos, classes, layers)
            start = time.perf_counter()
            hdf5 = convert(zarr, Path(folder) / "c.h5")
            converted = time.perf_counter() - start
            reference = plain(zarr, runs)
            for label, found in (
                ("NumPy", reference),
                ("Zarr", measure(zarr, runs)),
                ("HDF5", measure(hdf5, runs)),
            ):
                start = time.perf_counter()
                if label != "NumPy":
                    assert verify(zarr if label == "Zarr" else hdf5).ok
                checked = time.perf_counter() - start
                results.append({"size": name, "videos": videos, "layers": len(layers), "container": label,
                                **found,
                                "verify": checked if label != "NumPy" else None,
                                "load_ratio": found["load"] / reference["load"]})  # fmt: skip
                rows.append([f"{name}, {videos} videos, {len(layers)} layers", label, f"{found['open']:.2f}",
                             f"{found['load']:.2f}", f"{found['load'] / reference['load']:.1f}x",
                             f"{1e3 * found['gather']:.2f}",
                             f"{found['memory'] / found['bytes']:.2f}x" if "memory" in found else "",
                             f"{checked:.1f}" if label != "NumPy" else ""])  # fmt: skip
            results.append({"size": name, "convert": converted})
            for mapped in (False, True):
                found, where = (
                    training(zarr, 1 if options.quick else 2, mapped=mapped),
                    "mapped" if mapped else "held",
                )
                results.append({"size": name, "training": where, **found})
                gib = [f"{found[key] / 2**30:.2f}" for key in ("peak", "own", "allowed")]
                cache = f"{name}, {videos} videos, {len(layers)} layers"
                trained.append([cache, where, *gib, f"{1e3 * found['gather']:.1f}"])
    columns = ("cache", "in", "open, s", "load, s", "of NumPy", f"{VIDEOS} videos, ms", "memory", "verify, s")
    _print(columns, rows)
    print("load: all layers, every shard compared with its digest; memory: its peak, of the features' size\n")
    _print(("training on", "features", "peak, GiB", "own, GiB", "allowed", "16 episodes, ms"), trained)
    print("peak: with the files' pages that are mapped; own: without them, at the end")
    if options.json:
        write_json(options.json, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
