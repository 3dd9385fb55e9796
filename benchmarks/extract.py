"""How fast videos become features, beside a plain loop on the same machine at the same time.

``python -m benchmarks.extract [--quick] [--clips N] [--rounds N] [--threads N] [--workers N] [--model M]
[--resize-on decoders|encoder] [--json FILE]``. Generated clips of 3 s: 90 frames of 320x240, MPEG-4 with
B-frames in AVI at about 800 kbit/s, as HMDB51's are; 8 frames are taken of each. The plain loop takes one
video after the other: the same frames (``read_frames``, so the same decoding policy), torchvision's
transforms on PIL images, ``encode_image`` in float32, ``np.save``. The package's side is one whole call of
``extract``: loading the encoder, starting decoders, text features, cache, digests and seal included; the
plain loop finds its encoder loaded.

Both sides have the same clips, frames, encoder and number of threads, are processes of their own (memory is
handled differently) and take turns; every number is a median over rounds, the ratio the median of the rounds'
ratios. Two more rates are limits: what the decoders give alone, and what the encoder takes of random pixels.
``--model``: an open_clip architecture, whose weights are then random (no time depends on them, errors do), a
``local-dir:``, or ``mobilenetv2``, the default, which is timm's MobileNetV2 with a projection to 512
dimensions.

Threads of one operation wait for one another: where other processes keep cores busy, the clock flatters the
side with fewer operations. There, measure with ``--threads 1 --workers 1`` and compare processor time. The
last line printed is ``ratio: R.RRx error E.Ee-E``.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

CLAIM = "Videos become a plain loop's features, in about a third of its time (docs/speed.md)."

if TYPE_CHECKING:
    from torch import Tensor

    from clipspm.extract import ExtractConfig

# decoders import this module when they start: torch and all that imports it is imported where it is used

FRAMES, CLASSES = 8, 4
#: videos of the data sets
DATASETS = {"HMDB51": 6766, "UCF101": 13320, "Kinetics-100": 10000, "SSv2-Full": 82283, "SSv2-Small": 10000}
MOBILENET = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "mobilenetv2_100",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 3},
}


@dataclass(frozen=True)
class Options:
    """What is measured. ``plain``: clips of the plain loop per round, the first of all ``clips``; so many are
    generated, the others are links to them.
    """

    clips: int = 128
    plain: int = 32
    rounds: int = 3
    threads: int = 2
    workers: int = 2
    model: str = "mobilenetv2"
    resize_on: str = "decoders"


# ----------------------------------------------------------------------------------------------- clips


def write_clip(path: Path, seed: int, *, count: int = 90, height: int = 240, width: int = 320) -> None:
    """A textured background that pans, a textured square on a curve, and noise."""
    import av

    rng = np.random.default_rng(seed)
    back, front = _texture(rng, height + count, width + 2 * count), _texture(rng, 80, 80)
    noise = rng.normal(0, 6, (8, height, width, 1)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 800_000
        stream.codec_context.thread_count = 1
        for t in range(count):
            image = back[t : t + height, 2 * t : 2 * t + width] + noise[t % len(noise)]
            top = int(height / 2 - 40 + 60 * np.sin(t / 9 + seed))
            left = int(width / 2 - 40 + 90 * np.cos(t / 13 + seed))
            image[top : top + 80, left : left + 80] = front
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth blobs of several sizes, float32 [height, width, 3] of 0 to 255."""
    from PIL import Image

    layers = []
    for cells in (4, 12, 40):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        layers.append(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32))
    return np.mean(layers, axis=0)


def write_clips(folder: Path, count: int, distinct: int) -> list[Path]:
    """``count`` clips in folders named after classes, in the order of their names."""
    paths = [folder / f"class {i % CLASSES}" / f"{i:05d}.avi" for i in range(count)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < distinct:
            write_clip(path, i)
        else:
            path.hardlink_to(paths[i % distinct])
    return sorted(paths)


# --------------------------------------------------------------------------------------------- encoders


def local_encoder(folder: Path, name: str) -> str:
    """``name`` as a ``local-dir:`` that open_clip and this package both load."""
    if name.startswith("local-dir:"):
        return name
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    if name == "mobilenetv2":
        (folder / "clipspm-mobilenetv2.json").write_text(json.dumps(MOBILENET))
        open_clip.add_model_config(folder)
        name = "clipspm-mobilenetv2"
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained_image=False)
    with torch.no_grad():  # as in training: batch statistics, else activations vanish
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        model.train().encode_image(torch.randn(8, 3, *_pair(model.visual.image_size)))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


class PlainLoop:
    """One video after the other, as one writes it first."""

    def __init__(self, source: str) -> None:
        import open_clip
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

        self.model = open_clip.create_model(source, require_pretrained=True).eval()
        about = self.model.visual.preprocess_cfg
        crop = _pair(about["size"])[0]
        self.transform = Compose(
            [
                Resize(round(crop * 8 / 7), InterpolationMode.BICUBIC),
                CenterCrop(crop),
                ToTensor(),
                Normalize(about["mean"], about["std"]),
            ]
        )

    def features(self, path: Path) -> "Tensor":
        """float32 [T, D], not normalised."""
        import torch
        from PIL import Image

        from clipspm.extract import read_frames

        frames = read_frames(path, FRAMES).frames
        images = torch.stack([self.transform(Image.fromarray(frame)) for frame in frames])
        with torch.no_grad():
            return self.model.encode_image(images)

    def run(self, paths: list[Path], out: Path) -> None:
        """A file of features per video."""
        out.mkdir(parents=True)
        for i, path in enumerate(paths):
            np.save(out / f"{i}.npy", self.features(path).numpy())


# ------------------------------------------------------------------------------------------ measurement


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes on the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def processor_seconds() -> tuple[float, float]:
    """Processor time so far: of this process and its ended children, and of all processes of the machine."""
    line = Path("/proc/stat").read_text("utf-8").split("\n", 1)[0]
    user, nice, system = (int(word) for word in line.split()[1:4])
    return sum(os.times()[:4]), (user + nice + system) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What work took: seconds on the clock, of processors, and of processors in other processes meanwhile."""

    clock: float
    own: float
    others: float


def cost(work: Callable[[], object]) -> Cost:
    """Do ``work`` and say what it took."""
    own, all_ = processor_seconds()
    clock = seconds(work)
    own_after, all_after = processor_seconds()
    own = own_after - own
    return Cost(clock, own, max(0.0, all_after - all_ - own))


def _serve(source: str, threads: int, pipe: Connection) -> None:
    """The plain loop's process: does the loop over the paths that it is sent, and answers what it took."""
    import torch

    torch.set_num_threads(threads)
    loop = PlainLoop(source)
    while (request := pipe.recv()) is not None:
        pipe.send(cost(lambda wanted=request: loop.run(*wanted)))


@contextmanager
def plain_loop(source: str, threads: int) -> Iterator[Callable[[list[Path], Path], Cost]]:
    """What runs the plain loop in a process of its own and says what it took."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(source, threads, theirs), daemon=True)
    process.start()
    theirs.close()

    def run(paths: list[Path], out: Path) -> Cost:
        pipe.send((paths, out))
        answer: Cost = pipe.recv()
        return answer

    yield run
    pipe.send(None)
    process.join()


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """All rounds: videos per second of both sides and of the limits, ratios, shares, errors."""
    import torch

    from clipspm.extract import Encoder, ExtractConfig

    torch.set_num_threads(options.threads)
    os.environ["CLIPSPM_HOME"] = str(folder / "home")
    paths = write_clips(folder / "videos", options.clips, options.plain)
    source = local_encoder(folder / "encoder", options.model)
    config = ExtractConfig(
        dataset="folder",
        videos=folder / "videos",
        model=source,
        layers="final",
        frames=FRAMES,
        device="cpu",
        threads=options.threads,
        workers=options.workers,
        resize_on=options.resize_on,  # type: ignore[arg-type]
        overwrite=True,
        out=folder / "features.zarr",
    )
    encoder = Encoder(source, None, device="cpu")  # measures the precision once, on either side's behalf
    rounds = []
    with plain_loop(source, options.threads) as plain:
        plain(paths[:1], folder / "warm-up")
        for number in range(options.rounds):
            found = one_round(options, plain, config, encoder, paths, folder / f"plain {number}")
            rounds.append(found)
            text = ", ".join(f"{key} {found[key]:.2f}" for key in ("plain", "package", "ratio", "others"))
            print(f"round {number + 1} of {options.rounds}: {text}", file=sys.stderr, flush=True)
    return {
        **options.__dict__,
        "model": options.model if not options.model.startswith("local-dir:") else encoder.source.name,
        "precision": encoder.precision,
        "rounds": rounds,
        "median": medians(rounds),
        "error": relative_errors(folder / "features.zarr", folder / "plain 0", paths),
        "projection_h": {
            n: v / statistics.median(r["package"] for r in rounds) / 3600 for n, v in DATASETS.items()
        },
    }


def one_round(
    options: Options,
    plain: Callable[[list[Path], Path], Cost],
    config: "ExtractConfig",
    encoder: Any,
    paths: list[Path],
    out: Path,
) -> dict[str, Any]:
    """Videos per second of the plain loop, the package, its decoders and its encoder; shares of time."""
    from clipspm.extract import extract

    few, results = paths[: options.plain], []
    theirs = plain(few, out)
    ours = cost(lambda: results.append(extract(config)))
    result: Any = results[0]
    if result.done != len(paths):
        raise RuntimeError(f"{result.done} of {len(paths)} clips were read: {result.failures[:1]}")
    decoding, taking = decoding_seconds(config, encoder, few)
    rates = {"plain": len(few) / theirs.clock, "package": len(paths) / ours.clock}
    return {
        **rates,
        "ratio": rates["package"] / rates["plain"],
        "after_start": result.done / result.seconds,
        "decoding": len(few) / decoding,
        "taking_ms": 1e3 * taking / len(few),
        "encoding": encoder_rate(encoder, config.batch_size),
        "share": dict(result.share),
        "processor_ms": {"plain": 1e3 * theirs.own / len(few), "package": 1e3 * ours.own / len(paths)},
        "others": (theirs.others + ours.others) / (theirs.clock + ours.clock),
    }


def decoding_seconds(config: "ExtractConfig", encoder: Any, paths: list[Path]) -> tuple[float, float]:
    """Seconds for ``paths`` from file to pixels in this process, by all workers, once they are started.

    And seconds of processors that this process spends on taking them in.
    """
    from clipspm.extract.decode_pool import DecodePool
    from clipspm.extract.views import NATIVE, ClipSettings

    pre = encoder.preprocessing
    native = NATIVE * pre.resize**2 if config.resize_on == "encoder" else 0
    kept = {
        k: getattr(pre, k) for k in ("resize", "crop", "interpolation", "resize_mode", "crop_width", "fill")
    }
    settings = ClipSettings(frames=FRAMES, views=1, flip=False, min_frames=1, native=native, **kept)
    with DecodePool(settings, workers=config.workers or 1, timeout=60.0) as pool:
        list(pool.stream([(path, path.name) for path in paths[: 4 * pool.workers]]))
        own = time.process_time()
        clock = seconds(lambda: list(pool.stream([(path, path.name) for path in paths])))
        return clock, time.process_time() - own


def encoder_rate(encoder: Any, batch: int) -> float:
    """Videos per second of the encoder on random pixels, the best of three batches."""
    import torch

    shape = (batch, *encoder.preprocessing.shape, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    encoder.encode_images(pixels)
    return batch / FRAMES / min(seconds(lambda: encoder.encode_images(pixels)) for _ in range(3))


def relative_errors(cache: Path, plain: Path, paths: list[Path]) -> dict[str, float]:
    """Largest and median |package - plain| / |plain| over the frames of the plain loop's videos."""
    from clipspm.cache import open_cache

    opened = open_cache(cache)
    rows = {Path(video.path).name: row for row, video in enumerate(opened.good)}
    features, errors = opened.features("final"), []
    for file in plain.iterdir():
        exact = np.load(file)
        found = features[rows[paths[int(file.stem)].name], 0].astype(np.float32)
        errors.extend(np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1))
    return {"largest": float(np.max(errors)), "median": float(np.median(errors))}


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of everything over rounds."""
    first = rounds[0]
    return {
        key: {k: statistics.median(r[key][k] for r in rounds) for k in first[key]}
        if isinstance(first[key], dict)
        else statistics.median(r[key] for r in rounds)
        for key in first
    }


def print_results(found: dict[str, Any]) -> None:
    """The tables: rates, shares and the projection."""
    from clipspm.tables import Table

    middle = found["median"]
    names = {
        "plain": "plain loop, float32",
        "package": f"`extract`, {found['precision']}, whole call",
        "after_start": "`extract`, after the encoder is loaded",
        "decoding": f"its decoders alone ({found['workers']} processes)",
        "encoding": "its encoder alone, random pixels",
    }
    rows = [
        (name, f"{middle[key]:.2f}", f"{1e3 / middle[key]:.0f}", f"{middle[key] / middle['plain']:.2f}x")
        for key, name in names.items()
    ]
    rows[1] = (*rows[1][:3], f"{middle['ratio']:.2f}x")
    shares = ", ".join(f"{name} {value:.0%}" for name, value in middle["share"].items())
    error, spent = found["error"], middle["processor_ms"]
    notes = (
        f"{found['clips']} clips ({found['plain']} in the plain loop), {found['threads']} threads, "
        f"{found['workers']} decoding processes, {len(found['rounds'])} rounds; "
        f"other processes kept {middle['others']:.2f} cores busy",
        f"processor time per video: plain loop {spent['plain']:.0f} ms, package {spent['package']:.0f} ms "
        f"({spent['plain'] / spent['package']:.2f}x)",
        f"busy share of the package's stages: {shares}",
        f"taking a decoded video in costs the encoding process {middle['taking_ms']:.2f} ms: at most "
        f"{1e3 / middle['taking_ms']:.0f} videos/s into one encoder",
        f"relative error against the plain loop's float32 features: largest {error['largest']:.1e}, "
        f"median {error['median']:.1e}",
        "speed does not depend on the weights, which may be random",
        *(("so few clips show what starting takes, not rates",) if found["clips"] < 64 else ()),
    )
    title = f"Files to features, {found['model']}, {FRAMES} frames of a 3 s clip"
    print(Table(("", "videos/s", "ms per video", "ratio"), rows, title, notes).markdown())
    hours = [(n, f"{DATASETS[n]:,}", f"{60 * h:.0f} min") for n, h in found["projection_h"].items()]
    note = "estimates: the number of videos over the measured rate, as if all clips were like these"
    print(
        "\n"
        + Table(("data set", "videos", "time"), hours, "Projection to whole data sets", (note,)).markdown()
    )


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one round of few clips: a smoke test")
    parser.add_argument("--clips", type=int, help="clips that the package extracts (128)")
    parser.add_argument("--rounds", type=int, help="how often everything is timed (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of either side (all cores)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="decoding processes (cores)")
    parser.add_argument("--model", default="mobilenetv2", help="architecture or local-dir: (mobilenetv2)")
    parser.add_argument("--resize-on", default="decoders", choices=("decoders", "encoder"))
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    arguments = parser.parse_args()
    clips = arguments.clips or (8 if arguments.quick else 128)
    options = Options(
        clips=clips,
        plain=min(clips, 4 if arguments.quick else 32),
        rounds=arguments.rounds or (1 if arguments.quick else 3),
        threads=arguments.threads,
        workers=arguments.workers,
        model=arguments.model,
        resize_on=arguments.resize_on,
    )
    folder = Path(tempfile.mkdtemp())
    try:
        found = measure(options, folder)
    finally:
        shutil.rmtree(folder)
    print_results(found)
    if arguments.json:
        from benchmarks.report import machine
        from clipspm.cache.disk import write_json

        write_json(arguments.json, {"machine": machine(), **found})
    print(f"ratio: {found['median']['ratio']:.2f}x error {found['error']['largest']:.1e}")


if __name__ == "__main__":
    main()
