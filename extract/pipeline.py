"""``extract``: run the encoder once over every video and class name, and cache what it says.

Shapes: N videos, V views, T frames, D a layer's width.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import clipspm
from clipspm.cache.errors import ClipspmError, UsageError
from clipspm.cache.home import caches_dir, home
from clipspm.cache.reader import open_cache
from clipspm.cache.spec import CacheSpec, Plan, VideoRecord
from clipspm.cache.writer import CacheWriter, Format, check_same
from clipspm.extract.clip import Clip, ClipSettings
from clipspm.extract.datasets import NO_FLIP, Index, index_dataset
from clipspm.extract.decode import DecodeError
from clipspm.extract.encoder import Encoder, Precision, parse_layers
from clipspm.extract.prompts import load_templates
from clipspm.extract.workers import decode_all

DEFAULT_MODEL, DEFAULT_PRETRAINED = "ViT-B-16-quickgelu", "openai"
_FP16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """One extraction. Sizes in pixels, times in seconds."""

    dataset: str
    videos: Path | None = None
    splits: Path | None = None
    model: str | None = None
    pretrained: str | None = None
    precision: Precision = "auto"
    pixel_norm: Literal["model", "none"] = "model"
    device: str | None = None
    layers: str = "final"
    prompts: str = "photo"
    frames: int = 8
    views: int = 1
    resize: int | None = None
    min_frames: int = 1
    format: Format = "zarr"
    store_dtype: Literal["fp16", "fp32"] = "fp16"
    out: Path | None = None
    limit: int | None = None
    workers: int | None = None
    batch_size: int = 64
    shard_size: int = 256
    decode_timeout: float = 60.0
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "views", "batch_size", "shard_size", "min_frames"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("limit", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")


@dataclass
class Progress:
    """How far an extraction is; times are the main process's wall clock, in seconds."""

    total: int
    done: int = 0
    failed: int = 0
    waiting: float = 0.0
    encoding: float = 0.0
    writing: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction did. ``failures``: (path, category, message) of every failed video."""

    path: Path
    fingerprint: str
    videos: int
    done: int
    already: int
    failures: tuple[tuple[str, str, str], ...]
    seconds: float
    share: dict[str, float]
    notes: tuple[str, ...]
    bytes_needed: int
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        raw = {**self.__dict__, "path": str(self.path), "notes": list(self.notes)}
        raw["failures"] = [dict(zip(("path", "category", "error"), f, strict=True)) for f in self.failures]
        raw["failed_by_category"] = dict(Counter(category for _, category, _ in self.failures))
        return raw


def extract(
    config: ExtractConfig,
    *,
    on_start: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> ExtractResult:
    """Extract what is missing. Videos that cannot be read are recorded and skipped.

    Raises :class:`ClipspmError` where nothing can be done (no videos, no encoder, other settings in the
    same cache, a layer that does not fit in fp16, no room on the disk).
    """
    to_render = config.dataset == "demo" and (config.videos is None or not config.videos.is_dir())
    config = _with_defaults(config)
    templates = load_templates(config.prompts)
    layers = parse_layers(config.layers)
    if to_render:
        _render_demo(config, on_start)
    index = index_dataset(config.dataset, config.videos, config.splits)
    _check_writable(config.out or caches_dir())
    assert config.model is not None
    encoder = Encoder(
        config.model,
        config.pretrained,
        layers=layers,
        device=config.device,
        precision=_settled_precision(config),
        resize=config.resize,
        pixel_norm=config.pixel_norm,
    )
    spec = _spec(config, encoder, templates)
    path = config.out or caches_dir() / _default_name(config, index, spec)
    plan = _limited(index.plan, config, path)
    needed = _bytes_needed(spec, len(plan.videos), len(plan.class_names))
    for note in index.notes:
        on_start(f"note: {note}")
    on_start(f"{len(plan.videos)} videos of {len(plan.class_names)} classes -> {path}")
    if config.dry_run:
        if path.exists() and not config.overwrite:
            check_same(path, open_cache(path).spec, spec)
        return _result(path, spec, plan, [], 0, 0, Progress(0), index, needed, dry_run=True)
    _check_room(path, needed)
    text = encoder.encode_text(plan.class_names, templates)
    writer = CacheWriter(
        path, spec, plan, text, format=config.format, shard_size=config.shard_size, overwrite=config.overwrite
    )
    already = sum(r.status != "pending" for r in writer.records)
    progress = Progress(total=len(writer.records) - already)
    _run(config, index, encoder, writer, progress, on_progress)
    writer.finish()
    return _result(path, spec, plan, writer.records, progress.done, already, progress, index, needed)


def _run(
    config: ExtractConfig,
    index: Index,
    encoder: Encoder,
    writer: CacheWriter,
    progress: Progress,
    on_progress: Callable[[Progress], None],
) -> None:
    shards = writer.pending_shards()
    records = writer.records
    jobs = ((index.root / records[row].path, records[row].id) for _, rows in shards for row in rows)
    clips = decode_all(
        jobs, _clip_settings(config, encoder), workers=_workers(config), timeout=config.decode_timeout
    )
    with closing(clips):  # type: ignore[type-var]
        for shard, rows in shards:
            batcher = _Batcher(encoder, config, writer.spec)
            outcomes: dict[int, VideoRecord] = {}
            for row in rows:
                start = time.perf_counter()
                clip = next(clips)
                progress.waiting += time.perf_counter() - start
                outcomes[row] = _outcome(records[row], clip)
                if isinstance(clip, Clip):
                    progress.encoding += batcher.add(clip.pixels)
                    progress.done += 1
                else:
                    progress.failed += 1
                on_progress(progress)
            seconds, features = batcher.finish()
            progress.encoding += seconds
            start = time.perf_counter()
            writer.commit(shard, outcomes, features)
            progress.writing += time.perf_counter() - start
            on_progress(progress)


class _Batcher:
    """Collects the frames of a shard's videos and encodes them in batches that cross video boundaries.

    Batches are formed inside a shard and in its order, so that the numbers do not depend on the workers.
    """

    def __init__(self, encoder: Encoder, config: ExtractConfig, spec: CacheSpec) -> None:
        self.encoder, self.spec, self.size = encoder, spec, config.batch_size
        self.waiting: list[np.ndarray] = []
        self.frames = 0
        self.encoded: dict[str, list[np.ndarray]] = {layer: [] for layer in spec.layers}

    def add(self, pixels: np.ndarray) -> float:
        """``pixels`` uint8 [V, T, C, C, 3]. Returns the seconds spent encoding."""
        flat = pixels.reshape(-1, *pixels.shape[2:])
        self.waiting.append(flat)
        self.frames += len(flat)
        start = time.perf_counter()
        while self.frames >= self.size:
            self._encode(self.size)
        return time.perf_counter() - start

    def finish(self) -> tuple[float, dict[str, np.ndarray]]:
        """Seconds spent, and per layer the features [videos, V, T, D] in the store's type."""
        start = time.perf_counter()
        if self.frames:
            self._encode(self.frames)
        shape = (-1, self.spec.views, self.spec.frames)
        features = {
            layer: np.concatenate(parts).reshape(*shape, self.spec.dims[layer])
            for layer, parts in self.encoded.items()
            if parts
        }
        return time.perf_counter() - start, features

    def _encode(self, count: int) -> None:
        whole = np.concatenate(self.waiting) if len(self.waiting) > 1 else self.waiting[0]
        batch, rest = whole[:count], whole[count:]
        self.waiting = [rest] if len(rest) else []
        self.frames = len(rest)
        pixels = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2)  # channels-last
        for layer, values in self.encoder.encode_images(pixels).items():
            self.encoded[layer].append(_to_store(values.cpu().numpy(), layer, self.spec.store_dtype))


def _to_store(values: np.ndarray, layer: str, dtype: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ClipspmError(f"layer {layer} of the encoder gives NaN or infinite values: try --precision fp32")
    if dtype == "fp32":
        return values
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _FP16_MAX:
        raise ClipspmError(
            f"layer {layer} reaches {largest:.0f}, more than fp16 holds ({_FP16_MAX:.0f}): "
            "use --store-dtype fp32"
        )
    return values.astype(np.float16)


def _outcome(record: VideoRecord, clip: Clip | DecodeError) -> VideoRecord:
    if isinstance(clip, DecodeError):
        return replace(record, status="failed", category=clip.category, error=clip.detail)
    return replace(
        record,
        status="ok",
        frames=clip.total,
        fps=clip.fps,
        indices=clip.indices,
        pts_seconds=clip.pts_seconds,
        backend=clip.backend,
    )


# ------------------------------------------------------------------------------------------- settings


def _with_defaults(config: ExtractConfig) -> ExtractConfig:
    if config.dataset == "demo":
        from clipspm.extract.demo import tiny_clip_source

        if config.model is None:
            config = replace(config, model=tiny_clip_source(), precision="fp32")
        return replace(config, videos=config.videos or home() / "demo" / "videos")
    if config.model is None:
        pretrained = config.pretrained or DEFAULT_PRETRAINED
        return replace(config, model=DEFAULT_MODEL, pretrained=pretrained)
    return config


def _render_demo(config: ExtractConfig, on_start: Callable[[str], None]) -> None:
    from clipspm.extract.demo import render_demo

    assert config.videos is not None
    on_start(f"rendering the demo videos to {config.videos}")
    render_demo(config.videos, workers=_workers(config))


def _settled_precision(config: ExtractConfig) -> Precision:
    """``auto`` keeps to what the cache at ``--out`` was begun with."""
    if config.precision == "auto" and config.out and config.out.exists() and not config.overwrite:
        return open_cache(config.out).spec.precision  # type: ignore[return-value]
    return config.precision


def _spec(config: ExtractConfig, encoder: Encoder, templates: tuple[str, ...]) -> CacheSpec:
    pre, source = encoder.preprocessing, encoder.source
    return CacheSpec(
        dataset=config.dataset,
        model=source.name,
        pretrained=source.pretrained,
        architecture_sha256=source.architecture_sha256,
        weights_sha256=source.weights_sha256,
        activation=source.activation,
        precision=encoder.precision,
        layers=encoder.layers,
        dims=encoder.dims,
        frames=config.frames,
        views=config.views,
        flip=config.views > 1 and config.dataset not in NO_FLIP,
        resize=pre.resize,
        crop=pre.crop,
        interpolation=pre.interpolation,
        mean=pre.mean,
        std=pre.std,
        prompts=templates,
        store_dtype=config.store_dtype,
        min_frames=config.min_frames,
        created_with=f"clipspm {clipspm.__version__}, torch {torch.__version__}, {encoder.device.type}",
    )


def _clip_settings(config: ExtractConfig, encoder: Encoder) -> ClipSettings:
    pre = encoder.preprocessing
    flip = config.dataset not in NO_FLIP
    return ClipSettings(
        config.frames, config.views, pre.resize, pre.crop, pre.interpolation, flip, config.min_frames
    )


def _default_name(config: ExtractConfig, index: Index, spec: CacheSpec) -> str:
    own = config.dataset in ("folder", "manifest")
    stem = (config.videos.resolve().stem if own and config.videos else config.dataset) or config.dataset
    model = spec.model.removeprefix("local-dir:")
    name = "-".join("".join(ch if ch.isalnum() else "-" for ch in part) for part in (stem, model))
    return f"{name}-{spec.fingerprint[:8]}{'.zarr' if config.format == 'zarr' else '.h5'}"


def _limited(plan: Plan, config: ExtractConfig, path: Path) -> Plan:
    """At most ``limit`` videos, taken evenly over the classes; videos the cache holds already stay."""
    if config.limit is None or config.limit >= len(plan.videos):
        return plan
    held: set[str] = set()
    if not config.overwrite:
        for place in (path, path.with_name(path.name + ".parts")):
            if place.exists():
                held |= {v.id for v in open_cache(place).videos}
    turn: Counter[str] = Counter()
    order: list[tuple[int, int]] = []
    for row, video in enumerate(plan.videos):
        order.append((turn[video.class_name], row))
        turn[video.class_name] += 1
    chosen = {row for _, row in sorted(order)[: config.limit]}
    videos = tuple(v for row, v in enumerate(plan.videos) if row in chosen or v.id in held)
    return replace(plan, videos=videos)


def _workers(config: ExtractConfig) -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.workers or max(1, min(16, available))


def _bytes_needed(spec: CacheSpec, videos: int, classes: int) -> int:
    width = sum(spec.dims.values())
    item = 2 if spec.store_dtype == "fp16" else 4
    text = classes * len(spec.prompts) * spec.dims["final"] * 4
    return videos * (spec.views * spec.frames * width * item + 400) + text


def _check_writable(path: Path) -> None:
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK):
        raise ClipspmError(f"cannot write to {place}: choose another --out, or set CLIPSPM_HOME")


def _check_room(path: Path, needed: int) -> None:
    place = path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ClipspmError(f"{place} has {free / 1e6:.0f} MB free, the cache needs {needed / 1e6:.0f} MB")


def _result(
    path: Path,
    spec: CacheSpec,
    plan: Plan,
    records: list[VideoRecord],
    done: int,
    already: int,
    progress: Progress,
    index: Index,
    needed: int,
    *,
    dry_run: bool = False,
) -> ExtractResult:
    elapsed = max(progress.elapsed, 1e-9)
    share = {
        "waiting for decoding": progress.waiting / elapsed,
        "encoding": progress.encoding / elapsed,
        "writing": progress.writing / elapsed,
    }
    return ExtractResult(
        path=path,
        fingerprint=spec.fingerprint,
        videos=len(plan.videos),
        done=done,
        already=already,
        failures=tuple((r.path, r.category, r.error) for r in records if r.status == "failed"),
        seconds=progress.elapsed,
        share={k: round(v, 3) for k, v in share.items()},
        notes=index.notes,
        bytes_needed=needed,
        dry_run=dry_run,
    )
