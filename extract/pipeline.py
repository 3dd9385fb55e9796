"""``extract``: run the encoder once over every video and class name, and cache the features."""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

import clipspm
from clipspm.cache.disk import check_room, free_bytes, size_text
from clipspm.cache.home import caches_dir
from clipspm.cache.lock import writing
from clipspm.cache.reader import size_on_disk
from clipspm.cache.spec import CacheSpec, Plan, VideoRecord
from clipspm.cache.store import Store, find_store, readable
from clipspm.cache.writer import (
    CacheWriter,
    check_fingerprint,
    check_format,
    check_nothing_dropped,
    check_removable,
    parts_path,
    statuses_to_do,
)
from clipspm.devices import resolve_device
from clipspm.engines import make_engine
from clipspm.errors import ClipspmError
from clipspm.extract.config import ExtractConfig, Precision
from clipspm.extract.datasets import NO_FLIP, Index
from clipspm.extract.decode import check_backend
from clipspm.extract.encoder import Encoder
from clipspm.extract.models import shown_name
from clipspm.extract.plan import DEFAULT_MODEL, Work, decoders, prepare
from clipspm.extract.prompts import fill, spoken
from clipspm.extract.shards import Shard, ShardTask, Spent

#: texts that are too long, named one by one
_MOST_SHOWN = 5


@dataclass
class Progress:
    """The state of an extraction. ``workers``: decode workers per encoder; times in seconds."""

    total: int
    workers: int = 1
    done: int = 0
    failed: int = 0
    spent: Spent = field(default_factory=Spent)
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def share(self) -> dict[str, float]:
        """The fraction of the time in which each stage was busy, and in which the encoder waited.

        ``decoding`` is the mean over an encoder's workers; several encoders add up. Stages overlap, so the
        fractions do not sum to 1.
        """
        elapsed, spent = max(self.elapsed, 1e-9), self.spent
        return {
            "decoding": spent.decoding / self.workers / elapsed,
            "waiting for it": spent.waiting / elapsed,
            "encoding": spent.encoding / elapsed,
            "writing": spent.writing / elapsed,
        }


@dataclass(frozen=True)
class ExtractResult:
    """The result of an extraction.

    ``done``: videos read in this run; ``already``: in earlier ones; ``failures``: (path, category, message)
    of every failed video; ``layers``: their widths; ``has_splits``: whether any class has a split.
    """

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
    bytes_free: int
    layers: dict[str, int] = field(default_factory=dict)
    has_splits: bool = True
    dry_run: bool = False

    @property
    def good(self) -> int:
        """Videos that did not fail; after a complete run, those whose features the cache holds."""
        return self.videos - len(self.failures)

    @property
    def next_command(self) -> str:
        """The command for the next step."""
        splits = "" if self.has_splits else " --splits FILE"
        return f"clipspm train-heads --cache {shlex.quote(str(self.path))}{splits}"

    def to_json(self) -> dict[str, Any]:
        """The result in plain JSON types."""
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
    """Extract the videos that are missing in the cache; those that cannot be read are recorded and skipped.

    Raises :class:`ClipspmError` if extraction is impossible: no videos, no encoder, a cache with other
    settings, a layer that does not fit in fp16, no room on the disk.
    """
    return run(prepare(config, on_start), on_start=on_start, on_progress=on_progress)


def run(
    work: Work,
    *,
    on_start: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> ExtractResult:
    """Run the extraction that :func:`~.plan.prepare` has checked; the second half of :func:`extract`."""
    config, index = work.config, work.index
    for name in config.devices:
        resolve_device(name)
    check_backend(config.decoder)
    assert config.model is not None
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    on_start(f"loading the encoder {config.model}")
    encoder = Encoder(
        config.model,
        config.pretrained,
        layers=_settled_layers(work),
        tokens=work.tokens,
        device=config.devices[0] if config.devices else None,
        precision=_settled_precision(config),
        resize=config.resize,
        pixel_norm=config.pixel_norm,
    )
    if config.tokens and not encoder.tower.tokens:
        on_start(f"note: {encoder.tower.name} has pooled maps, no tokens: --tokens does not apply")
    spec = _spec(work, encoder, _resized_by(config, encoder))
    path = config.out or caches_dir() / _default_name(config, index, spec)
    plan = _limited(index.plan, config, path)
    needed = _bytes_needed(spec, len(plan.videos), len(plan.class_names)) * (
        2 if config.format == "hdf5" else 1
    )
    on_start(f"{len(plan.videos)} videos of {len(plan.class_names)} classes -> {path}")
    widths = ", ".join(f"{layer} ({width})" for layer, width in spec.dims.items())
    per_video, in_all = size_text(_bytes_needed(spec, 1, 0)), size_text(needed)
    on_start(f"layers (width): {widths}; {per_video} per video, {in_all} in all")
    for note in _notes(work, encoder, spec):
        on_start(f"note: {note}")
    there = sum(size_on_disk(place) for place in (path, parts_path(path)) if place.exists())
    # if the planned videos have changed, the cache is rebuilt beside the old one, which needs the full room
    stays = (begun := _growing(config, path)) is not None and _planned(path, begun) == {
        v.id for v in plan.videos
    }
    check_room(path, needed - (there if stays else 0))
    if config.dry_run:
        already = 0
        if not config.overwrite:
            check_format(path, config.format)
        elif path.exists():
            check_removable(path)
        if begun is not None:
            with readable(path):
                check_fingerprint(path, begun.spec(), spec)
                records = begun.records()
            check_nothing_dropped(path, records, plan)
            done = {v.id for v in records if v.status not in statuses_to_do(config.retry_failed)}
            already = sum(video.id in done for video in plan.videos)
        return _result(path, spec, plan, [], 0, already, Progress(0), index, needed, dry_run=True)
    with writing(path) as news:
        if news:
            on_start(f"note: {news}")
        if work.descriptions:
            text = encoder.encode_descriptions([work.descriptions[name] for name in plan.class_names])
        else:
            names = map(spoken, plan.class_names) if spec.names == "cleaned" else plan.class_names
            text = encoder.encode_text(list(names), work.templates)
        writer = CacheWriter(
            path,
            spec,
            plan,
            text,
            format=config.format,
            shard_size=config.shard_size,
            overwrite=config.overwrite,
            retry_failed=config.retry_failed,
        )
        pending = writer.pending_shards()
        todo = [Shard(number, {row: writer.records[row] for row in rows}) for number, rows in pending]
        waiting = sum(len(shard.videos) for shard in todo)
        already = len(writer.records) - waiting
        progress = Progress(total=waiting, workers=decoders(config))
        if todo:
            task = _task(config, index, encoder, writer)
            _run(config, task, todo, writer, progress, on_progress)
        writer.finish()
    return _result(path, spec, plan, writer.records, progress.done, already, progress, index, needed)


def _run(
    config: ExtractConfig,
    task: ShardTask,
    todo: list[Shard],
    writer: CacheWriter,
    progress: Progress,
    on_progress: Callable[[Progress], None],
) -> None:
    """Run the shards on the engine's workers and take each into the cache when it is done."""
    devices = config.devices
    limit = config.most_failures(len(writer.records))
    before = sum(r.status == "failed" for r in writer.records) - sum(
        video.status == "failed" for shard in todo for video in shard.videos.values()
    )

    def listen(read: bool, spent: Spent) -> None:
        progress.done += read
        progress.failed += not read
        progress.spent += spent
        on_progress(progress)
        if limit is not None and before + progress.failed > limit:
            raise ClipspmError(
                f"stopped: {before + progress.failed} of {len(writer.records)} videos failed, more than "
                f"--max-failures {config.max_failures} allows. Finished shards are kept: run the same "
                "command with another limit to continue, with --retry-failed to try the failed ones too"
            )

    here = config.engine.name == "local" and len(devices) < 2
    task = replace(task, listen=listen) if here else replace(task, encoder=None)
    engine = make_engine(replace(config.engine, devices=devices, cpus=task.workers))
    videos = {shard.number: shard.videos for shard in todo}
    for done in engine.map(task, todo):
        start = time.perf_counter()
        writer.adopt(done.number)
        progress.spent += Spent(writing=time.perf_counter() - start)
        progress.spent += Spent(writing=done.spent.writing) if here else done.spent
        if not here:  # from the records: a worker may die after staging a shard, before reporting it
            for row in videos[done.number]:
                listen(writer.records[row].status == "ok", Spent())
        on_progress(progress)


def _task(config: ExtractConfig, index: Index, encoder: Encoder, writer: CacheWriter) -> ShardTask:
    several = len(config.devices) > 1
    return ShardTask(
        staging=writer.staging.resolve(),
        videos=index.root.resolve(),
        spec=writer.spec,
        model=_absolute(config.model or DEFAULT_MODEL),
        pretrained=_absolute(config.pretrained) if config.pretrained else None,
        pixel_norm=config.pixel_norm,
        flip=config.dataset not in NO_FLIP,
        decoder=config.decoder,
        batch_size=config.batch_size,
        workers=decoders(config),
        timeout=config.decode_timeout,
        memory=config.worker_memory,
        threads=config.threads or (decoders(config) if several else None),
        encoder=encoder,
    )


def _absolute(source: str) -> str:
    """Make a model folder or weights file absolute, for processes with another working directory."""
    prefix = "local-dir:" if source.startswith("local-dir:") else ""
    place = Path(source.removeprefix(prefix))
    return f"{prefix}{place.resolve()}" if prefix or place.exists() else source


# ------------------------------------------------------------------------------------------- settings


def _begun(config: ExtractConfig) -> CacheSpec | None:
    """The spec of the cache at ``--out`` if this run extends it; ``auto`` settings follow it."""
    if config.out and (begun := _growing(config, config.out)) is not None:
        with readable(config.out):
            return begun.spec()
    return None


def _growing(config: ExtractConfig, path: Path) -> Store | None:
    """The cache that this run extends, or None."""
    there = [place for place in (parts_path(path), path) if place.exists()]
    return find_store(there[0]) if there and not config.overwrite else None


def _settled_precision(config: ExtractConfig) -> Precision:
    """The precision to use: ``auto`` follows a cache that is extended; on remote GPUs it is fp16.

    Only on this machine can ``auto`` be measured.
    """
    if config.precision != "auto":
        return config.precision
    if begun := _begun(config):
        return begun.precision  # type: ignore[return-value]
    return "fp16" if config.engine.gpus else "auto"


def _resized_by(config: ExtractConfig, encoder: Encoder) -> Literal["pillow", "torch"]:
    if config.resize_on != "auto":
        return "torch" if config.resize_on == "encoder" else "pillow"
    if begun := _begun(config):
        return begun.resized_by
    elsewhere = config.engine.name != "local"
    return "torch" if (config.engine.gpus if elsewhere else encoder.device.type == "cuda") else "pillow"


def _settled_layers(work: Work) -> tuple[str, ...]:
    """The layers to take: unless some were asked for, those of a cache of this model that is extended."""
    config = work.config
    if config.layers is None and config.tokens is None and (begun := _begun(config)):
        assert config.model is not None
        if begun.model == shown_name(config.model, config.pretrained):
            return begun.layers
    return work.layers


def _names_in_prompts(work: Work) -> Literal["as given", "cleaned"]:
    """Whether prompts hold class names as words; a cache that is extended keeps to what it was begun with."""
    if work.descriptions or not work.templates:
        return "as given"
    if begun := _begun(work.config):
        return begun.names
    names = work.index.plan.class_names
    return "cleaned" if any(spoken(name) != fill("{}", name) for name in names) else "as given"


def _notes(work: Work, encoder: Encoder, spec: CacheSpec) -> Iterator[str]:
    """What a user may not expect: views that are the same, class names that were changed, sentences cut."""
    if spec.views > 1 and not encoder.preprocessing.margin:
        differ = "views are mirrored at most" if spec.flip else "all views are the same"
        yield f"{spec.model} takes whole frames: {differ}; --resize above {spec.resize} gives them a margin"
    names = work.index.plan.class_names
    if spec.names == "cleaned":
        changed = [name for name in names if spoken(name) != fill("{}", name)]
        shown = ", ".join(f"{name!r} is {spoken(name)!r}" for name in changed[:2])
        yield f"in prompts, {shown}" + (f", and so on ({len(changed)} class names)" if changed[2:] else "")
    said = map(spoken, names) if spec.names == "cleaned" else names
    texts = [fill(template, name) for name in said for template in work.templates]
    if work.descriptions:
        texts = [sentence for name in names for sentence in work.descriptions[name]]
    if not texts:
        yield f"{spec.model} has no text tower: heads that need class texts will not run on this cache"
        return
    cut = encoder.cut(texts)
    for text in cut[:_MOST_SHOWN]:
        yield f"cut to the {encoder.reads} tokens that {spec.model} reads: {text!r}"
    if cut[_MOST_SHOWN:]:
        yield f"{len(cut) - _MOST_SHOWN} more texts are cut to {encoder.reads} tokens"


def _spec(work: Work, encoder: Encoder, resized_by: Literal["pillow", "torch"]) -> CacheSpec:
    config = work.config
    return CacheSpec(
        **encoder.identity(),
        dataset=config.dataset,
        frames=config.frames,
        views=config.views,
        flip=config.views > 1 and config.dataset not in NO_FLIP,
        resized_by=resized_by,
        prompts=work.templates,
        names=_names_in_prompts(work),
        descriptions=work.descriptions,
        store_dtype=config.store_dtype,
        min_frames=config.min_frames,
        created_with=f"clipspm {clipspm.__version__}, torch {torch.__version__}, {encoder.device.type}",
    )


def _default_name(config: ExtractConfig, index: Index, spec: CacheSpec) -> str:
    own = config.dataset in ("folder", "manifest")
    stem = (config.videos.resolve().stem if own and config.videos else config.dataset) or config.dataset
    model = spec.model.removeprefix("local-dir:")
    name = "-".join("".join(ch if ch.isalnum() else "-" for ch in part) for part in (stem, model))
    return f"{name}-{spec.fingerprint[:8]}{'.zarr' if config.format == 'zarr' else '.h5'}"


def _planned(path: Path, store: Store) -> set[str]:
    """The ids of a cache's planned videos."""
    with readable(path):
        return {video_id for video_id, *_ in store.planned()}


def _limited(plan: Plan, config: ExtractConfig, path: Path) -> Plan:
    """Cut the plan to ``limit`` videos, evenly over the classes, plus those already in the cache."""
    if config.limit is None or config.limit >= len(plan.videos):
        return plan
    held: set[str] = set()
    if (begun := _growing(config, path)) is not None:
        held = _planned(path, begun)
    turn: Counter[str] = Counter()
    order: list[tuple[int, int]] = []
    for row, video in enumerate(plan.videos):
        order.append((turn[video.class_name], row))
        turn[video.class_name] += 1
    chosen = {row for _, row in sorted(order)[: config.limit]}
    videos = tuple(v for row, v in enumerate(plan.videos) if row in chosen or v.id in held)
    return replace(plan, videos=videos)


def _bytes_needed(spec: CacheSpec, videos: int, classes: int) -> int:
    width = sum(spec.dims.values())
    item = 2 if spec.store_dtype == "fp16" else 4
    text = classes * len(spec.prompts) * spec.dims["final"] * 4
    return videos * (spec.views * spec.frames * width * item + 400) + text


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
    return ExtractResult(
        path=path,
        fingerprint=spec.fingerprint,
        videos=len(plan.videos),
        done=done,
        already=already,
        failures=tuple((r.path, r.category, r.error) for r in records if r.status == "failed"),
        seconds=progress.elapsed,
        share={k: round(v, 3) for k, v in progress.share().items()},
        notes=index.notes,
        bytes_needed=needed,
        bytes_free=free_bytes(path),
        layers=dict(spec.dims),
        has_splits=any(video.split != "none" for video in plan.videos),
        dry_run=dry_run,
    )
