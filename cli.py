"""The command line: options in, one call of the library, what it found out.

Everything but results goes to standard error; ``--json`` prints one JSON object on standard output.
Exit codes: 0 done, 1 failure, 2 wrong usage, 3 done with videos skipped, 130 interrupted.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from clipspm import __version__
from clipspm.errors import ClipspmError, Interrupted, UsageError
from clipspm.progress import Reporter, shown
from clipspm.terminal import Terminal, one_line

_HELP = {"help_option_names": ["-h", "--help"]}


class _Commands(TyperGroup):
    """The commands: long work shows how far it is, and Ctrl-C is an error that says what is safe."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with shown():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Interrupted.of(stop) from None


app = typer.Typer(
    help="Few-shot action recognition: cache CLIP features once, train light heads in minutes.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=_Commands,
    context_settings=_HELP,
)
cache_app = typer.Typer(
    help="Look at caches, verify them, and make others of them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(cache_app, name="cache")
datasets_app = typer.Typer(
    help="The benchmarks, and what of them is on this disk.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(datasets_app, name="datasets")
episodes_app = typer.Typer(
    help="Lists of episodes: draw and save them, look at them, check them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(episodes_app, name="episodes")

# typer carries its own copy of click or uses the installed one: its exceptions are found through typer
_WrongUsage: Any = typer.BadParameter.__base__
_ClickFailure: Any = _WrongUsage.__base__

_MOST_THREADS = 1024
_CHOSEN_ON = {
    "val": "validation classes",
    "held-out classes": "held-out training classes",
    "held-out videos": "held-out training videos",
}

err = Terminal(stderr=True)
out = Terminal()


class PrecisionName(StrEnum):
    """Arithmetic of the encoder."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class ResizeOn(StrEnum):
    """Who resizes frames."""

    auto = "auto"
    decoders = "decoders"
    encoder = "encoder"


class FormatName(StrEnum):
    """Container of a cache."""

    zarr = "zarr"
    hdf5 = "hdf5"


class StoreType(StrEnum):
    """Number format inside a cache."""

    fp16 = "fp16"
    fp32 = "fp32"


class ExportType(StrEnum):
    """Files for other people's code."""

    npz = "npz"
    safetensors = "safetensors"


class EngineName(StrEnum):
    """Where work is done."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


class PixelNorm(StrEnum):
    """Whose mean and standard deviation pixels are normalised with."""

    model = "model"
    none = "none"


class ProtocolName(StrEnum):
    """Queries scored each alone, or all together."""

    inductive = "inductive"
    transductive = "transductive"


class TableFormat(StrEnum):
    """How a table of results is written."""

    terminal = "terminal"
    csv = "csv"
    json = "json"
    latex = "latex"
    markdown = "markdown"


class SplitName(StrEnum):
    """Classes that train, that choose the weights, and that are tested."""

    train = "train"
    val = "val"
    test = "test"


Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
CachePath = Annotated[Path | None, typer.Option("--cache", help="The cache (default: the newest).")]
CacheOf = Annotated[str | None, typer.Option("--dataset", help="The newest cache of this data set.")]
Splits = Annotated[
    Path | None, typer.Option(help='JSON or TOML: {"train": [class, ...], "val": [...], "test": [...]}.')
]
HoldOut = Annotated[
    bool | None,
    typer.Option(
        "--hold-out/--no-hold-out",
        help="Without validation classes, choose the weights on a part of the training set.  [default: on]",
    ),
]
SplitFiles = Annotated[
    Path | None,
    typer.Option(help="Folder with a benchmark's video lists as they circulate; the format is detected."),
]
Shots = Annotated[int | None, typer.Option(help="Support videos per class.  [default: 1]")]
Way = Annotated[int | None, typer.Option(help="Classes per episode.  [default: 5]")]
Queries = Annotated[
    int | None, typer.Option(help="Training queries per class.  [default: 4, or what the classes allow]")
]
FramesOf = Annotated[int | None, typer.Option("--frames", help="Frames sampled from the cached ones.")]
TrainEpisodes = Annotated[int | None, typer.Option("--episodes", help="Training episodes.")]
Preset = Annotated[str | None, typer.Option(help="Data set whose values of the method are used.")]
Recipe = Annotated[str | None, typer.Option(help="default, official or paper.")]
HeadName = Annotated[
    str | None, typer.Option("--head", help="The head; list: which there are.  [default: clip-spm]")
]
TrainProtocol = Annotated[ProtocolName | None, typer.Option("--protocol", help="Protocol used in training.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Learning rate.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... (default: a GPU if there is one).")]
Threads = Annotated[int | None, typer.Option(help="Threads to compute with on a CPU (default: all cores).")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings; explicit flags win.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting of the head, e.g. matcher=bimhm (repeatable)."
    ),
]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Leave out what is missing or damaged in the cache.")
]
EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="This machine, a Slurm cluster (submitit), or Ray.")
]
Jobs = Annotated[int | None, typer.Option(help="Slurm jobs or Ray actors.")]
Gpus = Annotated[float, typer.Option(help="GPUs of each Slurm job (whole ones) or Ray actor.")]
RayAddress = Annotated[
    str | None, typer.Option(help="A running Ray cluster (default: one of this machine's own).")
]
SlurmSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm",
        metavar="KEY=VALUE",
        help="A setting of the jobs, e.g. partition=gpu or timeout_min=60 (repeatable); cluster=local: here.",
    ),
]
CacheTarget = Annotated[Path, typer.Argument(help="The new one.", metavar="TARGET")]
CacheSource = Annotated[Path, typer.Argument(help="The cache.", metavar="CACHE")]
CacheFormat = Annotated[
    FormatName | None, typer.Option("--format", help="Container (default: by name, .h5 is HDF5).")
]
TestEpisodes = Annotated[int, typer.Option(help="Test episodes, drawn once and named by a hash.")]
Unbalanced = Annotated[
    bool,
    typer.Option("--unbalanced", help="Queries shared out by Dirichlet(2) instead of as many per class."),
]
SourceDisjoint = Annotated[
    bool, typer.Option("--source-disjoint", help="No query cut from the same source as a support.")
]
SourcePattern = Annotated[
    str | None,
    typer.Option(
        help="Regular expression whose first group is a video's source (implies --source-disjoint)."
    ),
]
PerClass = Annotated[
    bool,
    typer.Option("--per-class", help="Accuracy by class and the confusion matrix (CSV: these only)."),
]
FormatOf = Annotated[TableFormat, typer.Option("--format", help="How to write it.")]
TableFile = Annotated[Path | None, typer.Option("--out", help="Write into this file.")]
EpisodeFile = Annotated[Path, typer.Argument(help="A file of episodes.", metavar="FILE")]


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
    _help_alone(context)


@cache_app.callback()
@episodes_app.callback()
def _help_alone(context: typer.Context) -> None:
    """Show the help where no command is named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


# -------------------------------------------------------------------------------------------- stage one


@app.command()
def extract(
    dataset: Annotated[
        str,
        typer.Option(help="hmdb51, ucf101, kinetics100, ssv2-full, ssv2-small, folder, manifest or demo."),
    ],
    videos: Annotated[
        Path | None,
        typer.Option(help="Where the videos are (default: $CLIPSPM_DATA/DATASET, then ./data/DATASET)."),
    ] = None,
    splits: Splits = None,
    split_files: SplitFiles = None,
    model: Annotated[
        str | None,
        typer.Option(help="open_clip architecture or local-dir:FOLDER.  [default: ViT-B-16-quickgelu]"),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Tag, weights file or local-dir:FOLDER.  [default: openai]")
    ] = None,
    precision: Annotated[
        PrecisionName, typer.Option(help="auto: the fastest within 1e-2 of fp32 on this device.")
    ] = PrecisionName.auto,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, or several like cuda:0,cuda:1 (default: a GPU if there is one)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the encoder on a CPU (default: all cores).")
    ] = None,
    layers: Annotated[str, typer.Option(help="Layers to cache besides the final embedding.")] = "final",
    prompts: Annotated[str, typer.Option(help="photo, actionclip16, or a file of templates.")] = "photo",
    frames: Annotated[int, typer.Option(help="Frames per video.")] = 8,
    views: Annotated[int, typer.Option(help="Views per video: the centre crop, then random ones.")] = 1,
    resize: Annotated[
        int | None, typer.Option(help="Short side in pixels before the crop.  [default: 8/7 of the crop]")
    ] = None,
    resize_on: Annotated[
        ResizeOn,
        typer.Option(help="decoders (Pillow), or the encoder's device (torch). auto: there if it is a GPU."),
    ] = ResizeOn.auto,
    pixel_norm: Annotated[
        PixelNorm, typer.Option(help="Normalise pixels as the model says, or leave them in [0, 1].")
    ] = PixelNorm.model,
    min_frames: Annotated[int, typer.Option(help="Refuse videos with fewer frames.")] = 1,
    format: Annotated[FormatName, typer.Option(help="Container of the cache.")] = FormatName.zarr,
    store_dtype: Annotated[StoreType, typer.Option(help="Number format in the cache.")] = StoreType.fp16,
    out_path: Annotated[
        Path | None, typer.Option("--out", help="The cache to write (default: under $CLIPSPM_HOME).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many videos, evenly over the classes.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Decoding processes per encoder (default: the cores, or 1 by engine).")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Frames per call of the encoder.")] = 64,
    shard_size: Annotated[int, typer.Option(help="Videos per shard: what a kill can lose.")] = 256,
    decode_timeout: Annotated[float, typer.Option(help="Seconds that one video may take.")] = 60.0,
    worker_memory: Annotated[float, typer.Option(help="GiB that a decoding process may take (Linux).")] = 4.0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try videos again that could not be read before.")
    ] = False,
    max_failures: Annotated[
        str | None, typer.Option(metavar="N|P%", help="Stop when more videos (or per cent of them) fail.")
    ] = None,
    engine: EngineOption = EngineName.local,
    jobs: Jobs = None,
    gpus: Gpus = 0,
    ray_address: RayAddress = None,
    slurm: SlurmSettings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, or refused.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the cache again.")] = False,
    as_json: Json = False,
) -> None:
    """Run the encoder once over every video and class name, and cache the features."""
    from clipspm.extract.config import ExtractConfig
    from clipspm.extract.plan import prepare
    from clipspm.extract.progress import Watch, summary

    config = ExtractConfig(
        dataset=dataset,
        videos=videos,
        splits=splits,
        split_files=split_files,
        model=model,
        pretrained=pretrained,
        precision=precision.value,
        pixel_norm=pixel_norm.value,
        device=device,
        layers=layers,
        prompts=prompts,
        frames=frames,
        views=views,
        resize=resize,
        resize_on=resize_on.value,
        min_frames=min_frames,
        format=format.value,
        store_dtype=store_dtype.value,
        out=out_path,
        limit=limit,
        workers=workers,
        batch_size=batch_size,
        shard_size=shard_size,
        decode_timeout=decode_timeout,
        worker_memory=worker_memory,
        threads=threads,
        retry_failed=retry_failed,
        max_failures=max_failures,
        engine=_engine(engine, jobs, gpus, ray_address, slurm),
        overwrite=overwrite,
        dry_run=dry_run,
    )
    with Watch(Reporter()) as watch, _resumable("finished shards are"):
        work = prepare(config, watch.message)
        _load_torch(threads)
        from clipspm.extract.pipeline import run

        result = run(work, on_start=watch.message, on_progress=watch.progress)
    summary(result, watch.reporter)
    if result.good and not dry_run:
        _say(f"next: {result.next_command}")
    if as_json:
        _print_json(result.to_json())
    if result.failures:
        raise typer.Exit(3)


@datasets_app.callback()
def datasets(context: typer.Context, as_json: Json = False) -> None:
    """The five benchmarks with their classes and videos per split."""
    if context.invoked_subcommand is not None:
        return
    from clipspm.extract.report import benchmarks_table, describe_benchmarks

    found = describe_benchmarks()
    if as_json:
        _print_json({"datasets": found})
    else:
        _show(benchmarks_table(found))


@datasets_app.command("check")
def datasets_check(
    dataset: Annotated[str, typer.Argument(help="A benchmark, folder or manifest.")],
    videos: Annotated[
        Path | None,
        typer.Option(help="Where the videos are (default: $CLIPSPM_DATA/DATASET, then ./data/DATASET)."),
    ] = None,
    splits: Splits = None,
    split_files: SplitFiles = None,
    min_frames: Annotated[int, typer.Option(help="Count videos with fewer frames as too short.")] = 1,
    shots: Annotated[int, typer.Option(help="Support videos per class that episodes will need.")] = 5,
    queries: Annotated[int, typer.Option(help="Queries per class that episodes will need.")] = 1,
    names_only: Annotated[bool, typer.Option("--names-only", help="Do not open the files.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes that open files.")] = None,
    as_json: Json = False,
) -> None:
    """Per class: expected, found, missing, unreadable, duplicates, too short, before extracting."""
    from clipspm.extract.datasets import index_dataset
    from clipspm.extract.report import check

    index = index_dataset(dataset, videos, splits, split_files)
    for note in index.notes:
        _say(f"note: {note}")
    report = check(
        index, min_frames=min_frames, needed=shots + queries, open_files=not names_only, workers=workers
    )
    if as_json:
        _print_json(report.to_json())
    else:
        _show(report.table())
        out.print(report.sentence())
    if not report.enough:
        raise typer.Exit(1)


@cache_app.command("info")
def cache_info(path: Annotated[Path, typer.Argument(help="The cache.")], as_json: Json = False) -> None:
    """What a cache holds and what its numbers depend on."""
    from clipspm.cache import open_cache

    summary = open_cache(path).summary()
    if as_json:
        _print_json(summary)
        return
    for key, value in summary.items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        out.print(f"{key:<12} {text}")


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """The caches under $CLIPSPM_HOME, newest last."""
    from clipspm.cache.reader import describe_caches, home_table

    found = describe_caches()
    if as_json:
        _print_json({"caches": found})
    elif found:
        _show(home_table(found))
    else:
        _say("no caches yet: `clipspm extract` or `clipspm demo` makes one")


@cache_app.command("verify")
def cache_verify(
    path: CacheSource,
    repair: Annotated[
        bool, typer.Option("--repair", help="Queue what is damaged; the same extract does it again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every byte again, compare it with its checksums, and name what is damaged."""
    from clipspm.cache.verify import repair as queue
    from clipspm.cache.verify import verify

    report = verify(path)
    if as_json:
        _print_json(report.to_json())
    else:
        for finding in report.findings:
            out.print(f"{finding.where}: {finding.problem}")
        videos = ", ".join(f"{count} {status}" for status, count in report.statuses.items())
        verdict = "complete and undamaged" if report.ok else f"{len(report.findings)} findings"
        out.print(f"{report.path}: {verdict} ({videos or 'no videos'})")
    if repair:
        _say(queue(report))
    elif not report.ok:
        raise typer.Exit(1)


@cache_app.command("convert")
def cache_convert(source: CacheSource, target: CacheTarget, format: CacheFormat = None) -> None:
    """The same cache in the other container, bit for bit."""
    from clipspm.cache.transform import convert

    _say(f"cache: {convert(source, target, format=format.value if format else None)}")


@cache_app.command("merge")
def cache_merge(
    sources: Annotated[
        list[Path], typer.Argument(help="Caches with equal fingerprints.", metavar="CACHE...")
    ],
    target: Annotated[Path, typer.Option("--out", help="The new one.")],
    format: CacheFormat = None,
) -> None:
    """One cache of several, such as parts extracted on different machines."""
    from clipspm.cache.transform import merge

    _say(f"cache: {merge(sources, target, format=format.value if format else None)}")


@cache_app.command("pack")
def cache_pack(
    source: CacheSource,
    target: CacheTarget,
    format: CacheFormat = None,
    allow_partial: AllowPartial = False,
) -> None:
    """A cache without the videos that failed, in one shard."""
    from clipspm.cache.transform import pack

    done = pack(source, target, format=format.value if format else None, allow_partial=allow_partial)
    _say(f"cache: {done}")


@cache_app.command("export")
def cache_export(
    source: CacheSource,
    target: CacheTarget,
    format: Annotated[ExportType | None, typer.Option("--format", help="Default: by name.")] = None,
    allow_partial: AllowPartial = False,
) -> None:
    """Features, text, labels and ids as one .npz or .safetensors file for other code."""
    from clipspm.cache.transform import export

    done = export(source, target, format=format.value if format else None, allow_partial=allow_partial)
    _say(f"file: {done}")


# -------------------------------------------------------------------------------------------- stage two


@app.command()
def heads(as_json: Json = False) -> None:
    """The heads that train-heads and ablate take, and whether each has anything to train."""
    from clipspm.train_heads.heads.registry import describe_heads, heads_text

    if as_json:
        _print_json({"heads": describe_heads()})
    else:
        for line in heads_text().splitlines():
            out.print(line)


@app.command("train-heads")
def train_heads(
    cache: CachePath = None,
    dataset: CacheOf = None,
    splits: Splits = None,
    shots: Shots = None,
    way: Way = None,
    queries: Queries = None,
    frames: FramesOf = None,
    episodes: TrainEpisodes = None,
    head: HeadName = None,
    recipe: Recipe = None,
    preset: Preset = None,
    protocol: TrainProtocol = None,
    lr: LearningRate = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.  [default: 0]")] = None,
    device: Device = None,
    threads: Threads = None,
    settings: Settings = None,
    config_file: ConfigFile = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where to write the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    keep_checkpoints: Annotated[
        int,
        typer.Option(
            min=0, help="Keep the weights at so many validations, for eval --report-selection-bias."
        ),
    ] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
    hold_out: HoldOut = None,
    allow_partial: AllowPartial = False,
    as_json: Json = False,
) -> None:
    """Train a head on the training classes; the best checkpoint is chosen on the validation classes."""
    if head == "list":
        heads(as_json)
        return
    from clipspm.train_heads.config import resolve_config
    from clipspm.train_heads.episodes.data import Data
    from clipspm.train_heads.places import default_run_dir
    from clipspm.train_heads.request import fit_to_cache
    from clipspm.train_heads.resume import as_trained, unfinished_run

    given = _overrides(
        shots=shots, way=way, queries=queries, frames=frames, episodes=episodes, head=head,
        protocol=protocol, lr=lr, seed=seed, device=device, head_config=_settings(settings),
        hold_out=hold_out,
    )  # fmt: skip
    chosen: dict[str, Any] = {"recipe": recipe, "preset": preset, "file": config_file, "overrides": given}
    resolve_config(**chosen)  # mistakes are said before anything is read
    run = _run_to_resume(run_dir) if resume and run_dir is not None else None
    needed: Any = ("train", "val")
    if run is not None and cache is None and dataset is None and splits is None:
        data = as_trained(run, splits=needed, allow_partial=allow_partial, device=device or "auto")
        _say(f"cache: {data.path}")
    else:
        source = _open(cache, dataset, splits).require(needed, allow_partial=allow_partial)
        data = Data(source, device or "auto")
    config = None
    if run is not None and set(given) <= {"device"} and not (recipe or preset or config_file):
        config = replace(run.config, **given)
    elif run is None or any(chosen.values()):
        config = fit_to_cache(resolve_config(dataset=data.spec.dataset, **chosen), data, _silent)
    if run is not None:
        run_dir = run.path
    elif run_dir is None:
        assert config is not None
        run_dir = unfinished_run(config, data) if resume else default_run_dir(config, data)
    _load_torch(threads)
    from clipspm.train_heads import train

    try:
        result = train(
            data, config, run_dir, resume=resume, tensorboard=tensorboard, keep_checkpoints=keep_checkpoints
        )
    finally:
        with suppress(OSError):
            run_dir.rmdir()  # only where nothing was begun in it
    if as_json:
        _print_json(result.as_dict())
    else:
        accuracy = (
            "the last weights"
            if result.val_accuracy is None
            else f"{result.val_accuracy:.1%} on {_CHOSEN_ON[result.selection]}"
        )
        out.print(f"run: {run_dir} ({accuracy})")
        out.print(f"next: clipspm eval {shlex.quote(str(run_dir))}")


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory of train-heads.")],
    cache: Annotated[Path | None, typer.Option("--cache", help="The cache.  [default: the run's]")] = None,
    test_episodes: TestEpisodes = 10_000,
    episodes_file: Annotated[
        Path | None, typer.Option("--episodes-file", help="Score these saved episodes instead.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Support videos per class.  [default: the run's]")] = None,
    way: Annotated[int | None, typer.Option(help="Classes per episode.  [default: the run's]")] = None,
    queries: Annotated[int | None, typer.Option(help="Queries per class.  [default: 1]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the test episodes.  [default: 0]")] = None,
    unbalanced: Unbalanced = False,
    source_disjoint: SourceDisjoint = False,
    source_pattern: SourcePattern = None,
    protocol: Annotated[
        list[ProtocolName] | None, typer.Option(help="Only this protocol (repeatable; default: both).")
    ] = None,
    report_selection_bias: Annotated[
        bool,
        typer.Option(
            "--report-selection-bias", help="Also show what choosing the weights on test would report."
        ),
    ] = False,
    per_class: PerClass = False,
    format: FormatOf = TableFormat.terminal,
    out_path: TableFile = None,
    device: Device = None,
    threads: Threads = None,
    allow_partial: AllowPartial = False,
    as_json: Json = False,
) -> None:
    """Score a run on episodes of the test classes, inductive and transductive."""
    from clipspm.train_heads import Episodes, Run

    _check_file(out_path)
    if report_selection_bias and format is TableFormat.csv:
        raise UsageError("--report-selection-bias has no CSV: use --format json, or another")
    request = _overrides(way=way, shots=shots, queries=queries, seed=seed)
    kind = _kind(unbalanced, source_disjoint, source_pattern)
    if episodes_file and (request or any(kind.values())):
        raise UsageError("--episodes-file holds episodes of its own: leave out what would draw others")
    Run.open(run)
    asked = dict(
        episodes=Episodes.load(episodes_file) if episodes_file else test_episodes,
        **request,
        **kind,
        protocols=[p.value for p in protocol or ProtocolName],
        device=device or "auto",
        allow_partial=allow_partial,
    )
    _load_torch(threads)
    from clipspm.train_heads import evaluate as score
    from clipspm.train_heads import selection_bias

    if report_selection_bias:
        bias = selection_bias(run, cache, **asked)
        result, beside = bias.honest, [bias.table()]
        more = {"selection_bias": bias.as_dict()}
    else:
        result, beside, more = score(run, cache, **asked), [], {}
    _write(
        [result.table(), *beside, *(result.class_tables() if per_class else ())],
        TableFormat.json if as_json else format,
        out_path,
        csv=lambda: result.csv(per_class=per_class),
        content=lambda: {**result.as_dict(), **more},
    )


@app.command()
def doctor(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")], as_json: Json = False
) -> None:
    """Which files of a run are whole, damaged, missing or unknown, and what to do next."""
    from clipspm.train_heads import examine
    from clipspm.train_heads.doctor import run_to_examine

    path = run_to_examine(run)
    _load_torch(None)
    found = examine(path)
    if as_json:
        _print_json(found.as_dict())
    else:
        _show(found.table())
    if not found.ok:
        bad = [file.name for file in found.files if file.state in ("damaged", "missing")]
        raise ClipspmError(f"{found.run}: {', '.join(bad)} {'are' if len(bad) > 1 else 'is'} not whole")


@app.command()
def results(
    places: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs, or folders of runs (default: all under $CLIPSPM_HOME).", metavar="RUN..."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this data set.")] = None,
    per_class: PerClass = False,
    format: FormatOf = TableFormat.terminal,
    out_path: TableFile = None,
    no_published: Annotated[
        bool, typer.Option("--no-published", help="Leave published numbers out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """One table of any number of evaluated runs; what is not comparable is marked."""
    from clipspm.train_heads import collect

    _check_file(out_path)
    found = collect(places or (), dataset=dataset)
    for line in found.skipped:
        _say(f"note: left out: {line}")
    tables = [found.table()]
    if not no_published and (beside := found.published_table()):
        tables.append(beside)
    if per_class:
        tables += found.class_tables()
    _write(
        tables,
        TableFormat.json if as_json else format,
        out_path,
        csv=lambda: found.csv(per_class=per_class),
        content=lambda: found.as_dict(per_class=per_class),
    )


@app.command()
def compare(
    first: Annotated[
        Path, typer.Argument(help="A run, or a folder of runs that differ in seeds.", metavar="A")
    ],
    second: Annotated[Path, typer.Argument(help="Another.", metavar="B")],
    episodes: Annotated[
        str | None, typer.Option(help="Hash of the episodes (default: the newest that both have).")
    ] = None,
    as_json: Json = False,
) -> None:
    """A minus B on the same episodes, paired, with a bootstrap interval."""
    from clipspm.train_heads import compare as run

    result = run(first, second, episodes=episodes)
    if as_json:
        _print_json(result.as_dict())
    else:
        _show(result.table())


@episodes_app.command("make")
def episodes_make(
    target: Annotated[Path, typer.Option("--out", help="The file to write (.npz).")],
    cache: CachePath = None,
    dataset: CacheOf = None,
    splits: Splits = None,
    split: Annotated[SplitName, typer.Option(help="Whose classes.")] = SplitName.test,
    number: Annotated[int, typer.Option("--episodes", "--test-episodes", help="How many.")] = 10_000,
    way: Annotated[int, typer.Option(help="Classes per episode.")] = 5,
    shots: Annotated[int, typer.Option(help="Support videos per class.")] = 1,
    queries: Annotated[int, typer.Option(help="Queries per class.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    unbalanced: Unbalanced = False,
    source_disjoint: SourceDisjoint = False,
    source_pattern: SourcePattern = None,
    as_json: Json = False,
) -> None:
    """Draw episodes and save them in a small file that eval --episodes-file scores."""
    from clipspm.train_heads import Pool, draw, summary
    from clipspm.train_heads.episodes.draw import EpisodeSpec

    source = _open(cache, dataset, splits)
    spec = EpisodeSpec(
        dataset=source.spec.dataset, split=split.value, way=way, shot=shots, queries=queries, seed=seed,
        **_kind(unbalanced, source_disjoint, source_pattern),
    )  # fmt: skip
    drawn = draw(spec, Pool.from_cache(source, split.value), number)
    drawn.save(target)
    if as_json:
        _print_json({"file": str(target), **summary(drawn)})
    else:
        out.print(f"{target}: {len(drawn)} episodes, {drawn.hash}")


@episodes_app.command("show")
def episodes_show(
    file: EpisodeFile,
    number: Annotated[int, typer.Option("--episode", help="Which one to write out.")] = 0,
    as_json: Json = False,
) -> None:
    """What a file of episodes holds, and one of them in full."""
    from clipspm.train_heads import Episodes, summary
    from clipspm.train_heads.episodes.files import one_episode

    episodes = Episodes.load(file)
    facts, chosen = summary(episodes), one_episode(episodes, number)
    if as_json:
        _print_json({**facts, "episode": chosen})
        return
    for key, value in facts.items():
        out.print(f"{key:<15} {value}")
    for name, videos in chosen.items():
        out.print(f"episode {number}, {name}:")
        for part, ids in videos.items():
            out.print(f"  {part:<8} {', '.join(ids) or '-'}")


@episodes_app.command("verify")
def episodes_verify(
    file: EpisodeFile,
    cache: CachePath = None,
    splits: Splits = None,
    as_json: Json = False,
) -> None:
    """Whether a file is what its hash says, well-formed, and what its settings draw from a cache."""
    from clipspm.train_heads import Episodes
    from clipspm.train_heads.episodes.files import problems

    episodes = Episodes.load(file)
    found = problems(episodes, _open(cache, None, splits) if cache else None)
    if as_json:
        _print_json({"hash": episodes.hash, "checked_with": str(cache) if cache else None, "problems": found})
    else:
        for line in found:
            out.print(line)
        against = (
            f"drawn from {cache}"
            if cache
            else "well-formed; --cache PATH checks that they were drawn from it"
        )
        verdict = f"{len(found)} problems" if found else against
        out.print(f"{file}: {len(episodes)} episodes, {episodes.hash}: {verdict}")
    if found:
        raise typer.Exit(1)


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="The authors' checkpoint (torch.save or .safetensors).")],
    preset: Annotated[str, typer.Option(help="Data set whose values of the method it was trained with.")],
    out_path: Annotated[Path, typer.Option("--out", help="The run directory to write.")],
    base: Annotated[
        str, typer.Option(help="Tag or file that the text tower comes from, if the file holds a visual one.")
    ] = "openai",
    model: Annotated[
        str | None, typer.Option(help="open_clip architecture (default: told by the tower's shapes).")
    ] = None,
    weights_out: Annotated[
        Path | None, typer.Option(help="The encoder to write.  [default: RUN/encoder.safetensors]")
    ] = None,
    heads_only: Annotated[bool, typer.Option("--heads-only", help="Leave the visual tower out.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of the authors' code into a run that eval scores, and its encoder into a file."""
    from clipspm.extract.tower import save_encoder
    from clipspm.train_heads.import_checkpoint import read_checkpoint

    found = read_checkpoint(file, preset, out_path)
    encoder = None
    if found.tower and not heads_only:
        weights = weights_out or out_path / "encoder.safetensors"
        encoder = save_encoder(found.tower, weights, model=model, base=base, dim=found.head.dim).as_dict()
    try:
        found.save(out_path, encoder)
    except BaseException:
        if encoder:
            Path(encoder["file"]).unlink(missing_ok=True)  # the same command would refuse it
        raise
    chosen = encoder or {"model": "ITS-ARCHITECTURE", "file": "ITS-WEIGHTS"}
    taken = f"--dataset {preset} --model {chosen['model']} --pretrained {chosen['file']} --pixel-norm none"
    if as_json:
        _print_json({"run": str(out_path), "preset": preset, "dim": found.head.dim, "encoder": encoder})
    else:
        out.print(f"run: {out_path} (clip-spm, D = {found.head.dim})")
        out.print(f"next: clipspm extract {taken}")
        out.print(f"then: clipspm eval {shlex.quote(str(out_path))} --cache CACHE")


@app.command()
def ablate(
    drop: Annotated[
        list[str] | None, typer.Option(help="hsmr, spm, padm, or several joined by + (repeatable).")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="All eight combinations.")] = False,
    against: Annotated[
        list[str] | None, typer.Option(help="Another head as a row (repeatable); all: every other head.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds, separated by commas.")] = "0",
    cache: CachePath = None,
    dataset: CacheOf = None,
    splits: Splits = None,
    shots: Annotated[
        str | None, typer.Option(help="Support videos per class; several like 1,3,5.  [default: 1]")
    ] = None,
    way: Way = None,
    queries: Queries = None,
    frames: FramesOf = None,
    episodes: TrainEpisodes = None,
    recipe: Recipe = None,
    preset: Preset = None,
    protocol: TrainProtocol = None,
    lr: LearningRate = None,
    device: Annotated[
        str | None,
        typer.Option(help="As for train-heads; several, like cuda:0,cuda:0, train so many cells at a time."),
    ] = None,
    threads: Threads = None,
    settings: Settings = None,
    config_file: ConfigFile = None,
    hold_out: HoldOut = None,
    test_episodes: TestEpisodes = 10_000,
    out_path: Annotated[
        Path | None, typer.Option("--out", help="Where cells and tables go (default: under $CLIPSPM_HOME).")
    ] = None,
    allow_partial: AllowPartial = False,
    engine: EngineOption = EngineName.local,
    jobs: Jobs = None,
    gpus: Gpus = 0,
    ray_address: RayAddress = None,
    slurm: SlurmSettings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check it, and say what would be trained.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train the full model and the model without some part, on the same seeds and episodes."""
    from clipspm.cache.home import runs_dir
    from clipspm.train_heads.config import resolve_config
    from clipspm.train_heads.episodes.data import Data
    from clipspm.train_heads.experiments.rows import ablation_rows
    from clipspm.train_heads.places import cache_title

    spread = _engine(engine, jobs, gpus, ray_address, slurm, devices=device)
    given = _overrides(
        way=way, queries=queries, frames=frames, episodes=episodes, protocol=protocol, lr=lr,
        device=spread.devices[0] if spread.devices else None, head_config=_settings(settings),
        hold_out=hold_out,
    )  # fmt: skip
    chosen: dict[str, Any] = {"recipe": recipe, "preset": preset, "file": config_file, "overrides": given}
    rows: dict[str, Any] = {"drops": drop or (), "grid": grid, "heads": against or ()}
    number = {"--shots": _numbers("--shots", shots) if shots else None, "--seeds": _numbers("--seeds", seeds)}
    ablation_rows(resolve_config(**chosen), **rows)  # mistakes are said before anything is read
    source = _open(cache, dataset, splits).require(("train", "val", "test"), allow_partial=allow_partial)
    config = resolve_config(dataset=source.spec.dataset, **chosen)
    data = Data(source, config.device)
    folder = out_path or runs_dir() / f"ablate-{cache_title(data)}-{data.spec.fingerprint[:8]}"
    asked: dict[str, Any] = {
        **rows,
        "shots": number["--shots"] or [config.shots],
        "seeds": number["--seeds"],
        "out_dir": folder,
        "episodes": test_episodes,
        "engine": spread,
    }
    _load_torch(threads)
    from clipspm.train_heads import ablate_shots
    from clipspm.train_heads.experiments.ablate import describe_plans, plan_shots, plans_table

    if dry_run:
        plans = plan_shots(data, config, **asked)
        if as_json:
            _print_json(describe_plans(plans))
        else:
            _show(plans_table(plans))
        return
    with _resumable("finished cells and the last checkpoint are"):
        result = ablate_shots(data, config, **asked)
    if as_json:
        _print_json(result.as_dict())
    else:
        _show(result.table())
        out.print(f"tables: {folder}/ablation.json, .csv, .tex")


# --------------------------------------------------------------------------------------------- together


@app.command()
def demo(
    all_splits: Annotated[bool, typer.Option("--all-splits", help="All three class splits.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer clips and episodes.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Where videos, cache and runs go (default: $CLIPSPM_HOME/demo)."),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Render videos of moving shapes, encode them, train, ablate: the whole pipeline in minutes."""
    from clipspm.cache.home import home

    _load_torch(threads)
    from clipspm.extract.demo.stage import extract_demo
    from clipspm.extract.progress import Watch, failure_table
    from clipspm.train_heads.demo import run_demo

    where = folder or home() / "demo"
    with _resumable("what is done is"):
        with Watch(Reporter()) as watch:
            cache, splits = extract_demo(
                where,
                quick=quick,
                on_message=watch.message,
                on_progress=watch.progress,
                on_failures=lambda result: err.print(failure_table(result)),
            )
        result = run_demo(cache, splits if all_splits else splits[:1], where / "runs", quick=quick)
    if as_json:
        _print_json(result.as_dict())
    else:
        _show(result.table())
        out.print(result.sentence())
        _say(f"cache: {cache.path}; runs: {where / 'runs'} (`clipspm results`)")
        _say(f"next: clipspm train-heads --cache {cache.path}")
    if not result.convincing:
        raise typer.Exit(1)


# ---------------------------------------------------------------------------------------------- helpers


def _open(cache: Path | None, dataset: str | None, splits: Path | None) -> Any:
    from clipspm.cache import find_cache, open_cache

    path = find_cache(cache, dataset)
    _say(f"cache: {path}")
    found = open_cache(path)
    if splits is not None:
        from clipspm.extract.datasets import apply_splits, read_splits

        found = found.with_splits(apply_splits(found.class_names, read_splits(splits), splits))
    return found


def _run_to_resume(run_dir: Path) -> Any:
    """The run in ``run_dir``, or of that name under the home; None, and a note, where there is none."""
    from clipspm.train_heads.places import run_at
    from clipspm.train_heads.runs import CONFIG, Run

    if os.path.lexists(run_at(run_dir) / CONFIG):
        return Run.open(run_dir)
    _say(f"note: there is nothing to resume in {run_dir}: a new run begins there")
    return None


def _load_torch(threads: int | None) -> None:
    """Import PyTorch, which a cold disk makes a long wait, and set how many threads it computes with."""
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise UsageError(f"--threads is {threads}; it must be from 1 to {_MOST_THREADS}")
    if "torch" not in sys.modules:
        _say("loading PyTorch")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def _resumable(what: str) -> Iterator[None]:
    """Say after Ctrl-C that ``what`` is kept, and on a full disk, that the same command goes on."""
    from clipspm.cache.disk import DiskFull

    try:
        yield
    except DiskFull as full:
        raise full.but() from full
    except KeyboardInterrupt as stop:
        stop.__notes__ = [f"{what} kept; go on with: clipspm {shlex.join(sys.argv[1:])}"]
        raise


def _overrides(**given: Any) -> dict[str, Any]:
    values = {k: v for k, v in given.items() if v is not None and v != {}}
    return {k: v.value if isinstance(v, StrEnum) else v for k, v in values.items()}


def _settings(
    pairs: list[str] | None, option: str = "--set", example: str = "matcher=bimhm"
) -> dict[str, Any]:
    from clipspm.settings import from_yaml

    found = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{option} {pair!r}: expected KEY=VALUE, for example {example}")
        try:
            found[key.strip()] = from_yaml(value)
        except ValueError as error:
            raise UsageError(f"{option} {pair!r}: {value!r} is not a value") from error
    return found


def _engine(
    name: EngineName,
    jobs: int | None,
    gpus: float,
    ray_address: str | None,
    slurm: list[str] | None,
    *,
    devices: str | None = None,
) -> Any:
    from clipspm.cache.home import home
    from clipspm.engines import EngineConfig
    from clipspm.engines.base import parse_devices

    return EngineConfig(
        name=name.value,
        devices=parse_devices(devices),
        jobs=jobs,
        gpus=gpus,
        ray_address=ray_address,
        slurm=_settings(slurm, "--slurm", "partition=gpu"),
        logs=home().absolute() / "slurm_logs",
    )


def _kind(unbalanced: bool, source_disjoint: bool, pattern: str | None) -> dict[str, Any]:
    if pattern in ("", "name"):
        raise UsageError(
            f"--source-pattern {pattern!r} says no source: give a regular expression with a group"
        )
    return {"dirichlet": 2 if unbalanced else 0, "sources": pattern or ("name" if source_disjoint else "")}


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r}: expected whole numbers separated by commas, like 0,1,2"
        ) from error


def _silent(line: str) -> None:
    pass


def _show(*tables: Any) -> None:
    for i, table in enumerate(tables):
        if i:
            out.print()
        out.print(table)


def _check_file(path: Path | None) -> None:
    """Refuse, before any work, a file that could not be written."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}")
    if path is not None and path.is_dir():
        raise UsageError(f"--out {path} is a folder: name a file in it")
    if path is not None:
        from clipspm.cache.home import check_outside

        check_outside(path)


def _write(
    tables: list[Any],
    format: TableFormat,
    path: Path | None,
    *,
    csv: Callable[[], str],
    content: Callable[[], dict[str, Any]],
) -> None:
    """Results on the terminal, on standard output in another format, or in a file."""
    if format is TableFormat.terminal and path is None:
        _show(*tables)
        return
    from clipspm.cache.disk import write_text
    from clipspm.tables import written

    text = written(format.value, tables, csv=csv, content=content)
    if path is None:
        sys.stdout.write(text)
    else:
        write_text(path, text)
        _say(f"table: {path}")


def _say(line: str) -> None:
    err.print(one_line(line))


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def main() -> None:
    """Entry point: known failures become one line on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except ClipspmError as error:
        _fail(str(error), error.exit_code)
    except _WrongUsage as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        _fail(error.format_message() + hint, 2)
    except _ClickFailure as error:
        _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort) as stop:
        _fail(str(Interrupted.of(stop)), Interrupted.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:  # disk full, no permission: the message names the file
        with suppress(OSError, ValueError):  # what is not written yet would fail again as Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"{error.strerror or error}: {error.filename or 'standard output'}", 1)
    else:
        if code == Interrupted.exit_code:  # typer's own word for Ctrl-C, before a command began
            _fail("interrupted", code)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    err.print(f"error: {one_line(message)}")
    sys.exit(code)


if __name__ == "__main__":
    main()
