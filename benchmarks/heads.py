"""How fast CLIP-SPM trains and scores, beside :mod:`.reference_heads` on the same machine at the same time.

``python -m benchmarks.heads [--quick] [--full] [--threads N] [--cpu-time] [--json FILE]``. The ``official``
recipe's head at D = 512, 5-way 1-shot, 8 frames, on random features of the size of HMDB51. Training: 16
episodes of 4 queries per class are one optimiser step, here through ``Trainer.step``; drawing and gathering
episodes included on both sides.
Evaluation: 1 query per class, 10,000 episodes, extrapolated from a timed part (all of them with ``--full``);
what the package computes once per video counts with its share in 10,000 episodes.

The two sides are two processes (memory is handled differently), each with all cores, that take turns; every
number is a median over rounds, and every ratio the median of the rounds' ratios. On a machine that does other
work at the same time, threads wait for one another at every small operation, and the reference, which has
thousands, looks slower than it is: there, measure processor time with ``--threads 1 --cpu-time``. The last
line printed is
``ratios: train A.Ax eval B.Bx inductive C.Cx dtype float32``.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference_heads import ReferenceHead, adam, episodes_of
from benchmarks.report import machine
from clipspm.cache.disk import write_json
from clipspm.engines.allocator import keep_pages
from clipspm.progress import Reporter
from clipspm.tables import Table
from clipspm.train_heads.config import Precision, TrainConfig, resolve_config
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, draw
from clipspm.train_heads.evaluation.predict import autocast, evaluating, make_batch, predict, recall_videos
from clipspm.train_heads.heads.base import EPISODES_PER_STEP
from clipspm.train_heads.heads.protocol import Protocol
from clipspm.train_heads.runs import HeadShape, Run
from clipspm.train_heads.training.curves import Several
from clipspm.train_heads.training.loop import Trainer
from clipspm.train_heads.training.selection import Selector

CLAIM = "CLIP-SPM trains twice, and is scored several times, as fast as plain code (docs/speed.md)."

DIM, FRAMES, WAY, EPISODES = 512, 8, 5, 10_000
CLASSES = {"train": 31, "val": 0, "test": 10}
PER_CLASS = 133  # HMDB51: 6766 videos of 51 classes
TASKS = ("train", "transductive", "inductive")
NAMES = ("training", "evaluation, transductive", "evaluation, inductive")
#: what the authors' code took for the first two where a float32 matrix product ran at 349 GFLOP/s
AUTHORS, AUTHORS_RATE = (("train", 280.0), ("transductive", 87.0)), 349.0


@dataclass(frozen=True)
class Size:
    """How much is timed: rounds, and in each how many episodes of each task on either side."""

    rounds: int
    reference: Mapping[str, int]
    package: Mapping[str, int]
    warm_up: int  # steps of the package before the first round: its memory settles within three
    videos: int  # that are recalled in a round
    per_class: int  # videos that there are; a recall counts for PER_CLASS


@dataclass(frozen=True)
class Options:
    """How both sides compute and what is read of it."""

    precision: Precision = "float32"  #: of the package
    threads: int | None = None  #: of either side; None: all cores
    cpu_time: bool = False  #: processor time instead of the clock's


QUICK = Size(
    rounds=1,
    reference={"train": 1, "transductive": 1, "inductive": 1},
    package={"transductive": 16, "inductive": 8},
    warm_up=0,
    videos=48,
    per_class=12,
)
USUAL = Size(
    rounds=5,
    reference={"train": 2, "transductive": 4, "inductive": 1},
    package={"transductive": 64, "inductive": 32},
    warm_up=3,
    videos=128,
    per_class=PER_CLASS,
)


@dataclass(frozen=True)
class _Spec:
    dataset: str = "hmdb51"
    fingerprint: str = "0" * 64
    frames: int = FRAMES
    views: int = 1
    layers: tuple[str, ...] = ("final",)

    @property
    def dims(self) -> Mapping[str, int]:
        return {"final": DIM}


@dataclass(frozen=True)
class _Video:
    id: str
    class_name: str
    split: str


class Synthetic:
    """Random features in the shape of a cache of HMDB51's training and test classes."""

    path = Path("synthetic")
    spec = _Spec()

    def __init__(self, per_class: int) -> None:
        splits = [(f"{split} {c:02d}", split) for split, count in CLASSES.items() for c in range(count)]
        self.class_splits = dict(splits)
        self.class_names = tuple(self.class_splits)
        self.good = tuple(_Video(f"{n}/{v:03d}", n, s) for n, s in splits for v in range(per_class))
        rng = np.random.default_rng(0)
        shape = (len(self.good), 1, FRAMES, DIM)
        self._features = (0.45 * rng.standard_normal(shape, dtype=np.float32)).astype(np.float16)
        self._text = 0.45 * rng.standard_normal((len(self.class_names), DIM), dtype=np.float32)

    def mapped(self, layer: str = "final") -> Any:
        """[N, 1, T, D]."""
        return self._features

    def text(self) -> Any:
        """[C, D]."""
        return self._text


def config(precision: Precision = "float32") -> TrainConfig:
    """The ``official`` recipe as it is trained."""
    wanted = {"device": "cpu", "way": WAY, "shots": 1, "queries": 4, "frames": FRAMES, "precision": precision}
    return resolve_config(recipe="official", preset="hmdb51", overrides=wanted)


def scored_episodes(bank: FeatureBank, n: int) -> Episodes:
    """The first n of the episodes to score."""
    return draw(EpisodeSpec(dataset="hmdb51", split="test", way=WAY), bank.pool, n)


#: what :func:`seconds` reads; with one thread, processor time does not count the work of others
CLOCKS: dict[bool, Callable[[], float]] = {False: time.perf_counter, True: time.process_time}
_clock = time.perf_counter


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    began = _clock()
    work()
    return _clock() - began


def matmul_rate(dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """GFLOP/s of a product of two square matrices, the best of three."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    torch.mm(a[:256], b)
    return 2e-9 * size**3 / min(seconds(lambda: a @ b) for _ in range(3))


class Reference:
    """The plain side: one episode at a time."""

    def __init__(self, source: Synthetic) -> None:
        data = Data(source, "cpu")
        self.train_bank, self.test_bank = data.bank("train"), data.bank("test")
        torch.manual_seed(0)
        self.head = ReferenceHead(DIM)
        self.optimizer = adam(self.head)
        self.at = 0

    def train(self, n: int) -> float:
        """Seconds per episode: n of them, and one optimiser step per 16."""
        self.head.train()
        spec = EpisodeSpec(dataset="hmdb51", split="train", way=WAY, queries=4)

        def accumulate() -> None:
            for _ in range(n):
                batch = make_batch(
                    self.train_bank, draw(spec, self.train_bank.pool, 1, self.at), FRAMES, torch.Generator()
                )
                self.at += 1
                for episode in episodes_of(batch):
                    logits, motion = self.head(*episode)
                    self.head.loss(logits, motion, episode[-1]).backward()

        def step() -> None:
            self.optimizer.step()
            self.optimizer.zero_grad()

        return seconds(accumulate) / n + seconds(step) / EPISODES_PER_STEP

    @torch.no_grad()
    def score(self, n: int, protocol: Protocol) -> float:
        """Seconds per episode."""
        self.head.eval()
        call = self.head if protocol == "transductive" else self.head.alone

        def score() -> None:
            for i in range(n):
                part = draw(scored_episodes(self.test_bank, 1).spec, self.test_bank.pool, 1, i)
                for episode in episodes_of(make_batch(self.test_bank, part, FRAMES)):
                    call(*episode)

        return seconds(score) / n

    def operations(self) -> dict[str, float]:
        """Floating-point operations of one episode, of matrix products and convolutions."""
        found = {}
        for task in TASKS:
            with FlopCounterMode(display=False) as counter:
                self.run(task, 1)
            found[task] = float(counter.get_total_flops())
        return found

    def run(self, task: str, n: int) -> float:
        """Seconds per episode of ``task``, from ``n`` episodes."""
        return self.train(n) if task == "train" else self.score(n, task)  # type: ignore[arg-type]


class Package:
    """This package: the trainer's step and the scoring that ``eval`` does."""

    def __init__(self, source: Synthetic, precision: Precision, folder: str) -> None:
        keep_pages()
        self.precision = precision
        data = Data(source, "cpu")
        wanted = config(precision)
        shape = HeadShape.of(data.spec.dims, FRAMES)
        torch.manual_seed(0)
        head = shape.build(wanted)
        run = Run.create(Path(folder) / "run", wanted, shape, data.described())
        bank, quiet = data.bank("train"), Reporter(lambda line: None)
        self.trainer = Trainer(bank, Selector(), run, head, Several([]), quiet)
        self.bank, self.head, self.at = data.bank("test"), head, 0

    def train(self) -> float:
        """Seconds per episode of one step."""
        self.head.train()
        self.head.check, self.at = self.at == 0, self.at + 1
        return seconds(lambda: self.trainer.step(self.at - 1)) / EPISODES_PER_STEP

    def matmul(self) -> tuple[float, float]:
        """GFLOP/s of a product in float32 and in the package's precision."""
        rate = matmul_rate()
        return rate, matmul_rate(torch.bfloat16) if self.precision == "bf16" else rate

    def recall(self, videos: int) -> float:
        """Seconds per video of what is computed once."""
        rows = np.arange(videos).reshape(1, -1)
        with evaluating(self.head), autocast(self.bank.device, self.precision):
            frames, text = self.bank.gather(rows, FRAMES)[0], self.bank.text[self.bank.labels[:videos]]
            return seconds(lambda: self.head.recall({"final": frames}, text)) / videos

    def know(self) -> None:
        """Recall all test videos, as an evaluation of 10,000 episodes does."""
        with evaluating(self.head), autocast(self.bank.device, self.precision):
            self.known = recall_videos(self.head, self.bank, scored_episodes(self.bank, EPISODES), FRAMES)

    def score(self, n: int, protocol: Protocol) -> float:
        """Seconds per episode of what is done for each."""
        episodes = scored_episodes(self.bank, n)
        options: dict[str, Any] = {"frames": FRAMES, "protocol": protocol, "precision": self.precision}
        return seconds(lambda: predict(self.head, self.bank, episodes, known=self.known, **options)) / n


def _serve(side: str, options: "Options", per_class: int, pipe: Connection) -> None:
    """A process that does one side's work when asked for it."""
    global _clock
    _clock = CLOCKS[options.cpu_time]
    threads, precision = options.threads, options.precision
    if threads is not None:
        torch.set_num_threads(threads)
    source = Synthetic(per_class)
    with tempfile.TemporaryDirectory() as folder:
        worker: Any = Reference(source) if side == "reference" else Package(source, precision, folder)
        while (request := pipe.recv()) is not None:
            name, *arguments = request
            pipe.send(getattr(worker, name)(*arguments))


class Side:
    """A process of its own that answers one request at a time."""

    def __init__(self, side: str, options: "Options", per_class: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(side, options, per_class, theirs), daemon=True)
        self.process.start()

    def __call__(self, *request: Any) -> Any:
        self.pipe.send(request)
        return self.pipe.recv()

    def close(self) -> None:
        """End the process."""
        self.pipe.send(None)
        self.process.join()


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and any(f in flags.read_text("utf-8") for f in ("amx_bf16", "avx512_bf16"))


def measure(size: Size, options: "Options", *, full: bool = False) -> dict[str, Any]:
    """All rounds: milliseconds per episode of both sides, ratios, matrix product rates."""
    reference, package = (Side(s, options, size.per_class) for s in ("reference", "package"))
    try:
        operations = reference("operations")  # and a warm-up
        package("know")
        for _ in range(size.warm_up):
            package("train")
        rounds = []
        for number in range(size.rounds):
            found: dict[str, Any] = dict(zip(("matmul", "matmul_package"), package("matmul"), strict=True))
            recalled = package("recall", size.videos) * CLASSES["test"] * PER_CLASS / EPISODES
            for task in TASKS:
                theirs = reference("run", task, size.reference[task])
                ours = package("train") if task == "train" else package("score", size.package[task], task)
                ours += 0 if task == "train" else recalled
                found[task] = {"reference": 1e3 * theirs, "package": 1e3 * ours, "ratio": theirs / ours}
            found["recall"] = 1e3 * recalled
            rounds.append(found)
            ratios = ", ".join(f"{task} {found[task]['ratio']:.2f}x" for task in TASKS)
            print(f"round {number + 1} of {size.rounds}: {ratios}", file=sys.stderr, flush=True)
        whole = {p: 1e-3 * EPISODES * package("score", EPISODES, p) for p in TASKS[1:]} if full else {}
        return {
            "dtype": options.precision,
            "threads": options.threads or torch.get_num_threads(),
            "cpu_time": options.cpu_time,
            "operations": operations,
            "rounds": rounds,
            "full_evaluation_s": {p: 1e3 * s for p, s in whole.items()},
            "median": medians(rounds),
        }
    finally:
        reference.close()
        package.close()


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of everything over rounds."""
    single = ("matmul", "matmul_package", "recall")
    out: dict[str, Any] = {k: statistics.median(r[k] for r in rounds) for k in single}
    for task in TASKS:
        out[task] = {k: statistics.median(r[task][k] for r in rounds) for k in rounds[0][task]}
    return out


def table(found: dict[str, Any]) -> Table:
    """A row per task; shares of a product's rate count the reference's operations on both sides."""
    middle, rows = found["median"], []
    rates = {"reference": middle["matmul"], "package": middle["matmul_package"]}
    for task, name in zip(TASKS, NAMES, strict=True):
        times = middle[task]
        shares = (
            f"{found['operations'][task] * 1e-6 / rate / times[side]:.0%}" for side, rate in rates.items()
        )
        spent = (f"{times[side]:.1f}" for side in ("reference", "package"))
        rows.append((name, *spent, f"{times['ratio']:.1f}x", *shares))
    columns = ("per episode", "reference, ms", "package, ms", "ratio", "share, reference", "share, package")
    proportion = ", ".join(
        f"{middle[task]['reference'] * middle['matmul'] / AUTHORS_RATE:.0f} ms (theirs: {theirs:.0f} ms)"
        for task, theirs in AUTHORS
    )
    clock = "processor" if found["cpu_time"] else "wall-clock"
    notes = (
        f"{clock} time, {found['threads']} threads, {len(found['rounds'])} rounds, "
        f"package in {found['dtype']}; matrix product: {middle['matmul']:.0f} GFLOP/s in float32"
        + (f", {rates['package']:.0f} in {found['dtype']}" if found["dtype"] != "float32" else ""),
        "share: the reference's operations over the time, as part of that rate",
        f"the reference's first two in proportion to a product of {AUTHORS_RATE:.0f} GFLOP/s: {proportion}",
        f"in the package's evaluation, {middle['recall']:.1f} ms are an episode's share of what is computed "
        "once per video",
    )
    return Table(columns, rows, "CLIP-SPM, official recipe, D=512, 5-way 1-shot, 8 frames", notes)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one round of few episodes: a smoke test")
    parser.add_argument("--full", action="store_true", help="also score all 10,000 episodes")
    parser.add_argument("--threads", type=int, help="threads of either side (all cores)")
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of the clock's")
    parser.add_argument("--rounds", type=int, help="how often everything is timed (5)")
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else USUAL
    if arguments.rounds:
        size = replace(size, rounds=arguments.rounds)
    options = Options(threads=arguments.threads, cpu_time=arguments.cpu_time)
    precisions: tuple[Precision, ...] = ("float32", "bf16") if has_bf16() else ("float32",)
    measured = [measure(size, replace(options, precision=p), full=arguments.full) for p in precisions]
    for each in measured:
        print(table(each).markdown(), end="\n\n")
    if arguments.json:
        write_json(arguments.json, {"machine": machine(), "measured": measured})
    found = max(measured, key=lambda each: float(each["median"]["train"]["ratio"]))
    ratios = {task: found["median"][task]["ratio"] for task in TASKS}
    print(
        f"ratios: train {ratios['train']:.1f}x eval {ratios['transductive']:.1f}x "
        f"inductive {ratios['inductive']:.1f}x dtype {found['dtype']}"
    )


if __name__ == "__main__":
    main()
