"""The command line: options in, one call of the library, what it found out.

Everything but results goes to standard error; ``--json`` prints one JSON object on standard output.
Exit codes: 0 done, 1 failure, 2 wrong usage, 3 done with videos skipped, 130 interrupted.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from clipspm import __version__
from clipspm.cache.errors import ClipspmError, UsageError

app = typer.Typer(
    help="Few-shot action recognition: cache CLIP features once, train light heads in minutes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(help="Look at caches.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")

# typer carries its own copy of click or uses the installed one: its exceptions are found through typer
_WrongUsage: Any = typer.BadParameter.__base__
_ClickFailure: Any = _WrongUsage.__base__

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


class PrecisionName(StrEnum):
    """Arithmetic of the encoder."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class FormatName(StrEnum):
    """Container of a cache."""

    zarr = "zarr"
    hdf5 = "hdf5"


class StoreType(StrEnum):
    """Number format inside a cache."""

    fp16 = "fp16"
    fp32 = "fp32"


class PixelNorm(StrEnum):
    """Whose mean and standard deviation pixels are normalised with."""

    model = "model"
    none = "none"


class ProtocolName(StrEnum):
    """Queries scored each alone, or all together."""

    inductive = "inductive"
    transductive = "transductive"


Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
CachePath = Annotated[Path | None, typer.Option("--cache", help="The cache (default: the newest).")]
CacheOf = Annotated[str | None, typer.Option("--dataset", help="The newest cache of this data set.")]
Splits = Annotated[
    Path | None, typer.Option(help='JSON or TOML: {"train": [class, ...], "val": [...], "test": [...]}.')
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
HeadName = Annotated[str | None, typer.Option("--head", help="The head (default: clip-spm).")]
TrainProtocol = Annotated[ProtocolName | None, typer.Option("--protocol", help="Protocol used in training.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Learning rate.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... (default: a GPU if there is one).")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings; explicit flags win.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting of the head, e.g. matcher=bimhm (repeatable)."
    ),
]
TestEpisodes = Annotated[int, typer.Option(help="Test episodes, drawn once and named by a hash.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


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
    device: Device = None,
    layers: Annotated[str, typer.Option(help="Layers to cache besides the final embedding.")] = "final",
    prompts: Annotated[str, typer.Option(help="photo, actionclip16, or a file of templates.")] = "photo",
    frames: Annotated[int, typer.Option(help="Frames per video.")] = 8,
    views: Annotated[int, typer.Option(help="Views per video: the centre crop, then random ones.")] = 1,
    resize: Annotated[
        int | None, typer.Option(help="Short side in pixels before the crop.  [default: 8/7 of the crop]")
    ] = None,
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
    workers: Annotated[int | None, typer.Option(help="Decoding processes (default: one per core).")] = None,
    batch_size: Annotated[int, typer.Option(help="Frames per call of the encoder.")] = 64,
    shard_size: Annotated[int, typer.Option(help="Videos per shard: what a kill can lose.")] = 256,
    decode_timeout: Annotated[float, typer.Option(help="Seconds that one video may take.")] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the cache again.")] = False,
    as_json: Json = False,
) -> None:
    """Run the encoder once over every video and class name, and cache the features."""
    from clipspm.extract.pipeline import ExtractConfig
    from clipspm.extract.pipeline import extract as run
    from clipspm.extract.progress import Reporter

    config = ExtractConfig(
        dataset=dataset,
        videos=videos,
        splits=splits,
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
        min_frames=min_frames,
        format=format.value,
        store_dtype=store_dtype.value,
        out=out_path,
        limit=limit,
        workers=workers,
        batch_size=batch_size,
        shard_size=shard_size,
        decode_timeout=decode_timeout,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    with Reporter(err) as reporter:
        result = run(config, on_start=reporter.message, on_progress=reporter.progress)
    reporter.summary(result)
    if as_json:
        _print_json(result.to_json())
    if result.failures:
        raise typer.Exit(3)


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
        out.print(f"{key:<12} {text}", markup=False, soft_wrap=True)


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """The caches under $CLIPSPM_HOME, newest last."""
    from clipspm.cache.reader import describe_caches, home_table

    found = describe_caches()
    if as_json:
        _print_json({"caches": found})
    else:
        out.print(home_table(found))


# -------------------------------------------------------------------------------------------- stage two


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
    settings: Settings = None,
    config_file: ConfigFile = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where to write the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
    as_json: Json = False,
) -> None:
    """Train a head on the training classes; the best checkpoint is chosen on the validation classes."""
    from clipspm.train_heads import TrainConfig, default_run_dir, resolve_config, train

    source = _open(cache, dataset, splits)
    given = _overrides(
        shots=shots, way=way, queries=queries, frames=frames, episodes=episodes, head=head,
        protocol=protocol, lr=lr, seed=seed, device=device, head_config=_settings(settings),
    )  # fmt: skip
    config: TrainConfig | None = None
    if run_dir is None or not resume or given or recipe or preset or config_file:
        config = resolve_config(
            recipe=recipe, preset=preset, file=config_file, dataset=source.spec.dataset, overrides=given
        )
        run_dir = run_dir or default_run_dir(config, source)
    result = train(source, config, run_dir, resume=resume, tensorboard=tensorboard)
    if as_json:
        _print_json(result.as_dict())
    else:
        chosen = (
            f"{result.val_accuracy:.1%} on validation classes" if result.val_accuracy else "no validation"
        )
        out.print(f"run: {run_dir} ({chosen})", markup=False, soft_wrap=True)
        out.print(f"next: clipspm eval {run_dir}", markup=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory of train-heads.")],
    cache: CachePath = None,
    test_episodes: TestEpisodes = 10_000,
    shots: Shots = None,
    way: Way = None,
    queries: Annotated[int, typer.Option(help="Queries per class.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the test episodes.")] = 0,
    protocol: Annotated[
        list[ProtocolName] | None, typer.Option(help="Only this protocol (repeatable; default: both).")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Score a run on episodes of the test classes, inductive and transductive."""
    from clipspm.train_heads import evaluate as score

    result = score(
        run,
        cache,
        episodes=test_episodes,
        way=way,
        shots=shots,
        queries=queries,
        seed=seed,
        protocols=[p.value for p in protocol or ProtocolName],
        device=device or "auto",
    )
    if as_json:
        _print_json(result.as_dict())
    else:
        out.print(result.table().rich())


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
    from clipspm.train_heads.importing import read_checkpoint

    found = read_checkpoint(file, preset, out_path)
    encoder = None
    if found.tower and not heads_only:
        weights = weights_out or out_path / "encoder.safetensors"
        encoder = save_encoder(found.tower, weights, model=model, base=base, dim=found.head.dim).as_dict()
    found.save(out_path, encoder)
    chosen = encoder or {"model": "ITS-ARCHITECTURE", "file": "ITS-WEIGHTS"}
    taken = f"--dataset {preset} --model {chosen['model']} --pretrained {chosen['file']} --pixel-norm none"
    if as_json:
        _print_json({"run": str(out_path), "preset": preset, "dim": found.head.dim, "encoder": encoder})
    else:
        out.print(f"run: {out_path} (clip-spm, D = {found.head.dim})", markup=False, soft_wrap=True)
        out.print(f"next: clipspm extract {taken}", markup=False, soft_wrap=True)
        out.print(f"then: clipspm eval {out_path} --cache CACHE", markup=False, soft_wrap=True)


@app.command()
def ablate(
    drop: Annotated[
        list[str] | None, typer.Option(help="hsmr, spm, padm, or several joined by + (repeatable).")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="All eight combinations.")] = False,
    against: Annotated[list[str] | None, typer.Option(help="Another head as a row (repeatable).")] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds, separated by commas.")] = "0",
    cache: CachePath = None,
    dataset: CacheOf = None,
    splits: Splits = None,
    shots: Shots = None,
    way: Way = None,
    queries: Queries = None,
    frames: FramesOf = None,
    episodes: TrainEpisodes = None,
    recipe: Recipe = None,
    preset: Preset = None,
    protocol: TrainProtocol = None,
    lr: LearningRate = None,
    device: Device = None,
    settings: Settings = None,
    config_file: ConfigFile = None,
    test_episodes: TestEpisodes = 10_000,
    out_path: Annotated[
        Path | None, typer.Option("--out", help="Where cells and tables go (default: under $CLIPSPM_HOME).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train the full model and the model without some part, on the same seeds and episodes."""
    from clipspm.cache.home import runs_dir
    from clipspm.train_heads import ablate as run
    from clipspm.train_heads import resolve_config

    source = _open(cache, dataset, splits)
    config = resolve_config(
        recipe=recipe,
        preset=preset,
        file=config_file,
        dataset=source.spec.dataset,
        overrides=_overrides(
            shots=shots, way=way, queries=queries, frames=frames, episodes=episodes,
            protocol=protocol, lr=lr, device=device, head_config=_settings(settings),
        ),
    )  # fmt: skip
    folder = out_path or runs_dir() / f"ablate-{source.spec.dataset}-{source.spec.fingerprint[:8]}"
    result = run(
        source,
        config,
        out_dir=folder,
        drops=drop or (),
        grid=grid,
        heads=against or (),
        seeds=_seeds(seeds),
        episodes=test_episodes,
    )
    if as_json:
        _print_json(result.as_dict())
    else:
        out.print(result.table().rich())
        out.print(f"tables: {folder}/ablation.json, .csv, .tex", markup=False, soft_wrap=True)


# --------------------------------------------------------------------------------------------- together


@app.command()
def demo(
    all_splits: Annotated[bool, typer.Option("--all-splits", help="All three class splits.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer clips and episodes.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Where videos, cache and runs go (default: $CLIPSPM_HOME/demo)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Render videos of moving shapes, encode them, train, ablate: the whole pipeline in minutes."""
    from clipspm.cache.home import home
    from clipspm.extract.demo.stage import extract_demo
    from clipspm.train_heads.demo import run_demo

    where = folder or home() / "demo"
    cache, splits = extract_demo(where, quick=quick, on_message=_say)
    result = run_demo(cache, splits if all_splits else splits[:1], where / "runs", quick=quick, log=_say)
    if as_json:
        _print_json(result.as_dict())
    else:
        out.print(result.table().rich())
        out.print(result.sentence(), markup=False, soft_wrap=True)
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


def _overrides(**given: Any) -> dict[str, Any]:
    values = {k: v for k, v in given.items() if v is not None and v != {}}
    return {k: v.value if isinstance(v, StrEnum) else v for k, v in values.items()}


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    import yaml

    found = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair!r}: expected KEY=VALUE, for example matcher=bimhm")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {pair!r}: {value!r} is not a value") from error
    return found


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--seeds {text!r}: expected whole numbers separated by commas, like 0,1,2"
        ) from error


def _say(line: str) -> None:
    err.print(line, markup=False, soft_wrap=True)


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def main() -> None:
    """Entry point: known failures become one line on standard error and an exit code."""
    try:
        code = app(standalone_mode=False)
    except ClipspmError as error:
        _fail(str(error), error.exit_code)
    except _WrongUsage as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        _fail(error.format_message() + hint, 2)
    except _ClickFailure as error:
        _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command goes on where it stopped", 130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:  # disk full, no permission: the message names the file
        _fail(f"{error.strerror or error}: {error.filename or 'file'}", 1)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    err.print(f"error: {' '.join(message.split())}", markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
