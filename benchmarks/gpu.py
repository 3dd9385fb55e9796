"""Both stages on a GPU, in one go that ends in one JSON.

``python -m benchmarks.gpu [--minutes 8] [--json FILE]`` on the device (``--device cuda``, the default), in
this order: whether CPU and GPU agree; training and scoring of heads, in float32, TF32 and bf16; 10,000 test
episodes; encoders with random weights, alone, fed from memory and fed by decoders; two encoders on one
device. What does not begin within ``--minutes`` is left out and named. ``--device cpu --tiny`` is the same
with small sizes, to check the script itself (needs the test dependencies).

Bars, for an H100 or H200: 3,000 training episodes a second, 10,000 test episodes in 3 s, extraction from
memory at 90 % of the encoder alone.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.extract import local_encoder, write_clips
from benchmarks.report import machine
from clipspm.cache import CacheSpec
from clipspm.cache.disk import write_json
from clipspm.progress import Reporter
from clipspm.train_heads import Data, EpisodeSpec, build_head, draw, resolve_config
from clipspm.train_heads.config import Precision
from clipspm.train_heads.evaluation.calibrate import calibrate
from clipspm.train_heads.evaluation.predict import predict, scored
from clipspm.train_heads.runs import HeadShape, Run
from clipspm.train_heads.training.curves import Several
from clipspm.train_heads.training.loop import Trainer
from clipspm.train_heads.training.selection import Selector
from tests.support.synthetic import FakeCache, fake_cache

CLAIM = "Heads and encoders keep a GPU busy; not measured on one yet (docs/speed.md)."

BARS = {"training episodes/s": 3000.0, "seconds for 10,000 test episodes": 3.0, "from memory / alone": 0.9}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    classes: int = 31
    videos: int = 133  #: of each class
    dims: tuple[int, ...] = (512, 768)
    shots: tuple[int, ...] = (1, 5)
    steps: int = 30
    episodes: int = 10_000
    models: tuple[str, ...] = ("ViT-B-16", "ViT-L-14")
    batch: int = 256
    batches: int = 20
    clips: int = 512
    distinct: int = 32


TINY = Size(
    classes=8,
    videos=12,
    dims=(64,),
    shots=(1,),
    steps=1,
    episodes=64,
    models=("mobilenetv2",),
    batch=16,
    batches=1,
    clips=4,
    distinct=2,
)
FRAMES = 8
#: how products of float32 matrices are computed, and what is around them
ARITHMETIC: dict[str, tuple[str, Precision]] = {
    "float32": ("highest", "float32"),
    "tf32": ("high", "float32"),
    "bf16": ("highest", "bf16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--json", type=Path, help="write all numbers here")
    options = parser.parse_args()
    found = measure(options.device, TINY if options.tiny else Size(), options.minutes)
    for name, values in found.items():
        print(f"{name}: {values}")
    if options.json:
        write_json(options.json, found)


def measure(device: str, size: Size, minutes: float) -> dict[str, Any]:
    """All parts that begin within ``minutes``, by name; a part that fails says why."""
    began, on = time.monotonic(), torch.device(device)
    found: dict[str, Any] = {"machine": {**machine(), "device": device}, "bars": BARS}
    if on.type == "cuda":
        about = torch.cuda.get_device_properties(on)
        found["machine"] |= {"gpu": about.name, "gpu_memory": about.total_memory, "cuda": torch.version.cuda}
    for name, part in parts(on, size):
        if time.monotonic() - began > 60 * minutes:
            found[name] = "left out: no time"
            continue
        with memory(on) as peak:
            try:
                found[name] = part()
            except Exception as error:  # what else can be measured is
                found[name] = f"failed: {type(error).__name__}: {error}"
        if isinstance(found[name], dict):
            found[name]["peak_bytes"] = peak()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return found


def parts(on: torch.device, size: Size) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The parts, the most telling first."""
    yield "cpu and device agree", partial(agreement, on, size)
    for dim in size.dims:
        for recipe in ("default", "official"):
            for shots in size.shots:
                for arithmetic in ARITHMETIC:
                    name = f"training, {recipe}, {shots}-shot, D {dim}, {arithmetic}"
                    yield name, partial(training, on, size, recipe, shots, dim, arithmetic)
    for recipe in ("default", "official"):
        for shots in size.shots:
            yield (
                f"scoring, {recipe}, {shots}-shot, D {size.dims[0]}",
                partial(scoring, on, size, recipe, shots),
            )
    for model in size.models:
        for precision in ("bf16", "fp16") if on.type == "cuda" else ("fp32",):
            yield f"encoder, {model}, {precision}", partial(encoder, on, size, model, precision)
    yield f"two encoders, {size.models[0]}", partial(two_encoders, on, size, size.models[0])


# ------------------------------------------------------------------------------------------------ heads


@lru_cache(maxsize=2)
def source(size: Size, dim: int) -> FakeCache:
    """Random features of two layers."""
    classes, layers = {"train": size.classes, "test": size.classes}, {"8:mean": dim}
    return fake_cache(classes, per_class=size.videos, frames=FRAMES, dim=dim, noise=4.0, extra_layers=layers)


def agreement(on: torch.device, size: Size) -> dict[str, Any]:
    """Largest difference of a logit of one head on the CPU and on the device; whether episodes are equal."""
    gaps, hashes = {}, set()
    for recipe in ("default", "official"):
        logits = []
        for device in (torch.device("cpu"), on):
            data = Data(source(TINY, 64), str(device))
            config = resolve_config(recipe=recipe, overrides={"shots": 2})
            torch.manual_seed(0)
            head = build_head(
                config.head, dim=64, frames=FRAMES, layer_dims={"8:mean": 64}, config=config.head_config
            )
            head = head.to(device).eval()
            calibrate(head, data.bank("train", head.layers), way=5, frames=FRAMES)
            head.start_training()  # so that what is learned counts
            bank = data.bank("test", head.layers)
            drawn = draw(EpisodeSpec(dataset="fake", split="test", way=5, shot=2), bank.pool, 16)
            hashes.add(drawn.hash)
            found = list(scored(head, bank, drawn, frames=FRAMES, protocol="inductive"))
            logits.append(torch.cat(found).cpu())
        gaps[recipe] = float((logits[0] - logits[1]).abs().max())
    return {
        "largest gap of a logit": gaps,
        "same episodes": len(hashes) == 1,
        "within 1e-3": max(gaps.values()) < 1e-3,
    }


def training(
    on: torch.device, size: Size, recipe: str, shots: int, dim: int, arithmetic: str
) -> dict[str, Any]:
    """Episodes per second of ``Trainer.step``, drawing and gathering included."""
    products, precision = ARITHMETIC[arithmetic]
    with tempfile.TemporaryDirectory() as folder, float32_products(products):
        data = Data(source(size, dim), str(on))
        config = resolve_config(
            recipe=recipe,
            overrides={
                "shots": shots,
                "queries": 4,
                "frames": FRAMES,
                "precision": precision,
                "device": str(on),
            },
        )
        shape = HeadShape.of(data.spec.dims, FRAMES)
        torch.manual_seed(0)
        head = shape.build(config).to(on)
        bank = data.bank("train", head.layers)
        calibrate(head, bank, way=config.way, frames=FRAMES)
        run = Run.create(Path(folder) / "run", config, shape, data.described())
        trainer = Trainer(bank, Selector("val"), run, head, Several([]), Reporter(lambda line: None))
        head.start_training()
        head.train()
        trainer.step(0)
        head.check = False
        taken = [timed(on, partial(trainer.step, step)) for step in range(1, size.steps + 1)]
    return {"episodes/s": config.batch / statistics.median(taken)}


def scoring(on: torch.device, size: Size, recipe: str, shots: int) -> dict[str, Any]:
    """Seconds to score all episodes, inductive, what is computed once included."""
    dim = size.dims[0]
    data = Data(source(size, dim), str(on))
    config = resolve_config(recipe=recipe, overrides={"shots": shots})
    head = build_head(
        config.head, dim=dim, frames=FRAMES, layer_dims={"8:mean": dim}, config=config.head_config
    ).to(on).eval()  # fmt: skip
    calibrate(head, data.bank("train", head.layers), way=5, frames=FRAMES)
    bank = data.bank("test", head.layers)
    drawn = draw(EpisodeSpec(dataset="fake", split="test", way=5, shot=shots), bank.pool, size.episodes)
    found = {}
    for name, learned in (("as a pool", 0.0), ("with what is learned", 1.0)):
        if hasattr(head, "learned_weight"):
            head.learned_weight.fill_(learned)
        found[name] = timed(on, lambda: predict(head, bank, drawn, frames=FRAMES, protocol="inductive"))
    return {"episodes": size.episodes, "seconds": found}


# --------------------------------------------------------------------------------------------- encoders


def encoder(on: torch.device, size: Size, model: str, precision: str) -> dict[str, Any]:
    """Videos per second: of the encoder alone, of frames in memory through the batcher, of ``extract``."""
    from clipspm.extract import ExtractConfig, extract

    with tempfile.TemporaryDirectory() as folder:
        local = local_encoder(Path(folder) / "encoder", model)
        alone = encoder_alone(on, size, local, precision)
        write_clips(Path(folder) / "clips", size.clips, size.distinct)
        config = ExtractConfig(
            dataset="folder", videos=Path(folder) / "clips", model=local, layers="final", precision=precision,
            batch_size=size.batch, device=str(on), out=Path(folder) / "cache.zarr",
        )  # fmt: skip
        seconds = timed(on, lambda: extract(config))
    return {
        **alone,
        "extract, videos/s": size.clips / seconds,
        "extract / alone": size.clips / seconds / alone["alone, videos/s"],
    }


def encoder_alone(on: torch.device, size: Size, local: str, precision: str) -> dict[str, float]:
    """Videos per second of random pixels that are on the device, and of the same frames in main memory."""
    from clipspm.extract.encoder import Encoder
    from clipspm.extract.shards import Batcher

    made = Encoder(local, None, device=str(on), precision=precision)
    spec = CacheSpec(
        **made.identity(), dataset="random", frames=FRAMES, views=1, flip=False, prompts=(),
        resized_by="torch" if on.type == "cuda" else "pillow",
    )  # fmt: skip
    videos = size.batch * size.batches // FRAMES
    room = made.pixel_buffer(size.batch, on_device=True)
    room.random_(0, 256)
    pixels = room.permute(0, 3, 1, 2)
    made.encode_images(pixels)

    def alone() -> None:
        for _ in range(size.batches):
            made.encode_images(pixels)

    height, width = room.shape[1:3]
    clips = torch.randint(0, 256, (16, FRAMES, height, width, 3), dtype=torch.uint8)

    def fed() -> None:
        batcher = Batcher(made, size.batch, spec)
        for k in range(videos):
            batcher.add(clips[k % len(clips)])
        batcher.finish()
        batcher.features()

    rates = [videos / timed(on, work) for work in (alone, fed)]
    return {
        "alone, videos/s": rates[0],
        "from memory, videos/s": rates[1],
        "from memory / alone": rates[1] / rates[0],
    }


def two_encoders(on: torch.device, size: Size, model: str) -> dict[str, Any]:
    """Videos per second of two processes with an encoder each on one device, and of one."""
    precision = "bf16" if on.type == "cuda" else "fp32"
    with tempfile.TemporaryDirectory() as folder:
        local = local_encoder(Path(folder) / "encoder", model)
        rates = {}
        for count in (1, 2):
            with multiprocessing.get_context("spawn").Pool(count) as pool:
                work = [(str(on), size, local, precision)] * count
                rates[f"{count} processes, videos/s"] = sum(pool.starmap(_rate_of_one, work))
    return rates


def _rate_of_one(device: str, size: Size, local: str, precision: str) -> float:
    return encoder_alone(torch.device(device), size, local, precision)["from memory, videos/s"]


# ------------------------------------------------------------------------------------------------ clocks


def timed(on: torch.device, work: Callable[[], object]) -> float:
    """Seconds until the device has done ``work``."""
    wait = torch.cuda.synchronize if on.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


@contextmanager
def memory(on: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns the largest number of bytes in use on a GPU since then."""
    if on.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(on)
    yield lambda: torch.cuda.max_memory_allocated(on) if on.type == "cuda" else None


@contextmanager
def float32_products(how: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(how)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


if __name__ == "__main__":
    main()
