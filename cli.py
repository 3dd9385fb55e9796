"""The command line: options in, one call of the library, what it found out.

Everything but results goes to standard error; ``--json`` prints one JSON object on standard output.
Exit codes: 0 done, 1 failure, 2 wrong usage, 3 done with videos skipped, 130 interrupted.
"""

import os
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from clipspm import __version__
from clipspm.commands import caches, datasets, episodes, look, recognise, reproduce
from clipspm.commands.common import (
    AllowPartial,
    App,
    CacheOf,
    CachePath,
    Json,
    SourceDisjoint,
    SourcePattern,
    Splits,
    TestEpisodes,
    Unbalanced,
    engine_of,
    err,
    help_alone,
    kind_of,
    listen,
    load_torch,
    numbers,
    open_source,
    out,
    resumable,
    say,
    tell,
    write,
)
from clipspm.engines.base import MOST_THREADS, EngineConfig
from clipspm.errors import ClipspmError, Interrupted, UsageError
from clipspm.extract.config import ExtractConfig
from clipspm.options import Given, like, options_of, own
from clipspm.progress import Reporter, hush, logger, shown
from clipspm.tables import Format
from clipspm.terminal import one_line
from clipspm.train_heads.config import EvalConfig, TrainConfig


class _Commands(TyperGroup):
    """The commands: long work shows how far it is, and Ctrl-C is an error that says what is safe."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with shown():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Interrupted.of(stop) from None


app = App(
    "Few-shot action recognition: cache CLIP features once, train light heads in minutes.", cls=_Commands
)
app.add_typer(caches.app, name="cache")
app.add_typer(datasets.app, name="datasets")
app.add_typer(episodes.app, name="episodes")
app.command()(recognise.predict)
app.command()(recognise.timeline)
app.command()(look.report)
app.command()(look.diagnose)
app.command()(reproduce.reproduce)

# typer carries its own copy of click or uses the installed one: its exceptions are found through typer
_WrongUsage: Any = typer.BadParameter.__base__
_ClickFailure: Any = _WrongUsage.__base__

_CHOSEN_ON = {
    "val": "validation classes",
    "held-out classes": "held-out training classes",
    "held-out videos": "held-out training videos",
}


Device = Annotated[str | None, like(TrainConfig, "device")]
Threads = Annotated[
    int | None,
    own("Threads to compute with on a CPU.", "Machine", min=1, max=MOST_THREADS, shown="all cores"),
]
ConfigFile = Annotated[Path | None, own("YAML file of settings; explicit flags win.", "Training", "--config")]
PerClass = Annotated[
    bool,
    own("Accuracy by class and the confusion matrix (CSV: these only).", "Evaluation", "--per-class"),
]
FormatOf = Annotated[Format, own("How to write it.", "Output", "--format")]
TableFile = Annotated[Path | None, own("Write into this file.", "Output", "--out")]


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, own("Show the version and exit.", "Output", "--version")] = False,
    quiet: Annotated[bool, own("Results, warnings and errors only.", "Output", "--quiet", "-q")] = False,
    verbose: Annotated[bool, own("Where an error came from, too.", "Output", "--verbose", "-v")] = False,
    log_file: Annotated[
        Path | None, own("Add all that is said to this file, with the time.", "Output", "--log-file")
    ] = None,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
    hush(quiet)
    listen(verbose, log_file)
    help_alone(context)


# -------------------------------------------------------------------------------------------- stage one


@app.command()
@options_of(asked=ExtractConfig, engine=EngineConfig)
def extract(asked: Given, engine: Given, as_json: Json = False) -> None:
    """Run the encoder once over every video and class name, and cache the features."""
    from clipspm.extract.plan import prepare
    from clipspm.extract.progress import Watch, summary

    config = ExtractConfig(**asked, engine=engine_of(engine))
    with Watch(Reporter()) as watch, resumable("finished shards are"):
        work = prepare(config, watch.message)
        load_torch(config.threads)
        from clipspm.extract.pipeline import run

        result = run(work, on_start=watch.message, on_progress=watch.progress)
    summary(result, watch.reporter)
    if result.good and not config.dry_run:
        say(f"next: {result.next_command}")
    tell(as_json, result.to_json())
    if result.failures:
        raise typer.Exit(3)


@app.command()
def encoders(as_json: Json = False) -> None:
    """Encoders that are known to work: what each gives, reads and costs, and how it was tested."""
    from clipspm.extract.encoders import describe_encoders, encoders_table

    found = describe_encoders()
    tell(as_json, {"encoders": found}, encoders_table(found))


@app.command("bench-decoders")
def bench_decoders(
    videos: Annotated[list[Path], typer.Argument(help="Videos, or folders of them.", metavar="VIDEO...")],
    frames: Annotated[int, own("Frames per video.", "Frames", min=1)] = 8,
    repeats: Annotated[int, own("Readings of each video; the median counts.", "Machine", min=1)] = 3,
    timeout: Annotated[float, own("Seconds that one reading may take.", "Machine", above=0)] = 60.0,
    as_json: Json = False,
) -> None:
    """How fast each decoder reads your own clips, and whether its frames are those of a sequential decode."""
    from clipspm.extract.bench_decoders import bench_decoders as bench
    from clipspm.extract.bench_decoders import decoders_table, describe_decoders

    results = bench(videos, frames=frames, repeats=repeats, timeout=timeout)
    tell(as_json, {"decoders": describe_decoders(results)}, decoders_table(results))


# -------------------------------------------------------------------------------------------- stage two


@app.command()
def heads(as_json: Json = False) -> None:
    """The heads that train-heads and ablate take, and whether each has anything to train."""
    from clipspm.train_heads.heads.registry import describe_heads, heads_text

    tell(as_json, {"heads": describe_heads()}, *heads_text().splitlines())


@app.command("train-heads")
@options_of(given=TrainConfig)
def train_heads(
    *,
    cache: CachePath = None,
    dataset: CacheOf = None,
    splits: Splits = None,
    allow_partial: AllowPartial = False,
    given: Given,
    config_file: ConfigFile = None,
    run_dir: Annotated[
        Path | None, own("Where to write the run.", "Output", shown="under $CLIPSPM_HOME")
    ] = None,
    resume: Annotated[bool, own("Go on from the run's last checkpoint.", "Output", "--resume")] = False,
    keep_checkpoints: Annotated[
        int,
        own("Keep the weights at so many validations, for eval --report-selection-bias.", "Output", min=0),
    ] = 0,
    log_to: Annotated[
        str | None, own("Where curves go too: tensorboard, wandb, mlflow, joined by commas.", "Output")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a head on the training classes; the best checkpoint is chosen on the validation classes."""
    if given.get("head") == "list":
        heads(as_json)
        return
    from clipspm.train_heads.config import parse_services, resolve_config
    from clipspm.train_heads.episodes.data import Data
    from clipspm.train_heads.places import default_run_dir
    from clipspm.train_heads.request import fit_to_cache
    from clipspm.train_heads.resume import as_trained, unfinished_run

    services = parse_services(log_to or "")
    chosen: dict[str, Any] = {"file": config_file, "overrides": given}
    asked = resolve_config(**chosen)  # mistakes are said before anything is read
    run = _run_to_resume(run_dir) if resume and run_dir is not None else None
    needed: Any = ("train", "val")
    own_settings = run is not None and set(given) <= {"device"} and not config_file
    device = run.config.device if run is not None and own_settings and not given else asked.device
    if run is not None and cache is None and dataset is None and splits is None:
        data = as_trained(run, splits=needed, allow_partial=allow_partial, device=device)
        say(f"cache: {data.path}")
    else:
        source = open_source(cache, dataset, splits).require(needed, allow_partial=allow_partial)
        data = Data(source, device)
    config = None
    if run is not None and own_settings:
        config = replace(run.config, **given)
    elif run is None or any(chosen.values()):
        config = fit_to_cache(
            resolve_config(dataset=data.spec.dataset, **chosen), data.pools, data.spec, _silent
        )
    if run is not None:
        run_dir = run.path
    elif run_dir is None:
        assert config is not None
        run_dir = unfinished_run(config, data) if resume else default_run_dir(config, data)
    load_torch(threads)
    from clipspm.train_heads import train

    try:
        result = train(
            data, config, run_dir, resume=resume, log_to=services, keep_checkpoints=keep_checkpoints
        )
    finally:
        with suppress(OSError):
            run_dir.rmdir()  # only where nothing was begun in it
    accuracy = (
        "the last weights"
        if result.val_accuracy is None
        else f"{result.val_accuracy:.1%} on {_CHOSEN_ON[result.selection]}"
    )
    following = f"next: clipspm eval {shlex.quote(str(run_dir))}"
    tell(as_json, result.as_dict(), f"run: {run_dir} ({accuracy})", following)


@app.command("eval")
@options_of(given=EvalConfig)
def evaluate(
    *,
    run: Annotated[Path | None, typer.Argument(help="A run directory of train-heads.")] = None,
    head: Annotated[str | None, own("In place of a run: this head as it is.", "Data")] = None,
    cache: Annotated[Path | None, own("The cache.", "Data", "--cache", shown="the run's")] = None,
    allow_partial: AllowPartial = False,
    test_episodes: TestEpisodes = 10_000,
    episodes_file: Annotated[Path | None, own("Score these saved episodes instead.", "Episodes")] = None,
    given: Given,
    unbalanced: Unbalanced = False,
    source_disjoint: SourceDisjoint = False,
    source_pattern: SourcePattern = None,
    report_selection_bias: Annotated[
        bool,
        own(
            "Also show what choosing the weights on test would report.",
            "Evaluation",
            "--report-selection-bias",
        ),
    ] = False,
    per_class: PerClass = False,
    format: FormatOf = "terminal",
    out_path: TableFile = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a run, or a head as it is, on episodes of the test classes, inductive and transductive."""
    from clipspm.train_heads import Episodes, Run
    from clipspm.train_heads.episodes.draw import check_request
    from clipspm.train_heads.resume import as_trained

    _check_file(out_path)
    if report_selection_bias and format == "csv":
        raise UsageError("--report-selection-bias has no CSV: use --format json, or another")
    kind = kind_of(unbalanced, source_disjoint, source_pattern)
    if episodes_file and (given.keys() - {"protocols"} or any(kind.values())):
        raise UsageError("--episodes-file holds episodes of its own: leave out what would draw others")
    if (run is None) == (head is None):
        raise UsageError("name a run of train-heads, or with --head NAME a head to score as it is (not both)")
    wanted = EvalConfig(**given)
    if run is not None:
        scored = Run.open(run)
        data = as_trained(scored, cache, allow_partial=allow_partial, device=device or "auto")
    else:
        scored, data = _as_it_is(str(head), cache, wanted, allow_partial, device or "auto", threads)
    if not episodes_file:  # what would be refused is refused before PyTorch is loaded
        of_run = {"way": wanted.way or scored.config.way, "shot": wanted.shots or scored.config.shots}
        check_request(data.pools["test"], queries=wanted.queries, **of_run)
    asked: dict[str, Any] = {
        "episodes": Episodes.load(episodes_file) if episodes_file else test_episodes,
        **asdict(wanted),
        **kind,
    }
    load_torch(threads)
    from clipspm.train_heads import evaluate as score
    from clipspm.train_heads import selection_bias

    if report_selection_bias:
        bias = selection_bias(scored, data, **asked)
        result, beside = bias.honest, [bias.table()]
        more = {"selection_bias": bias.as_dict()}
    else:
        result, beside, more = score(scored, data, **asked), [], {}
    write(
        [result.table(), *beside, *(result.class_tables() if per_class else ())],
        "json" if as_json else format,
        out_path,
        csv=lambda: result.csv(per_class=per_class),
        content=lambda: {**result.as_dict(), **more},
    )


def _as_it_is(
    head: str, cache: Path | None, wanted: EvalConfig, allow_partial: bool, device: str, threads: int | None
) -> tuple[Any, Any]:
    """Return the run of ``head`` without training, and its data."""
    from clipspm.train_heads.config import resolve_config
    from clipspm.train_heads.episodes.data import Data
    from clipspm.train_heads.episodes.draw import check_request

    asked = {"way": wanted.way, "shots": wanted.shots, "device": device}
    overrides = {"head": head, **{key: value for key, value in asked.items() if value is not None}}
    resolve_config(overrides=overrides)  # mistakes are said before anything is read
    source = open_source(cache, None, None).require(("train", "val", "test"), allow_partial=allow_partial)
    data = Data(source, device)
    config = resolve_config(overrides=overrides, dataset=data.spec.dataset)
    check_request(data.pools["test"], way=config.way, shot=config.shots, queries=wanted.queries)
    load_torch(threads)
    from clipspm.train_heads.training.train import untrained

    return untrained(data, config), data


@app.command()
def doctor(
    place: Annotated[Path, typer.Argument(help="A run directory or a cache.", metavar="RUN|CACHE")],
    as_json: Json = False,
) -> None:
    """Which files of a run or a cache are whole, damaged, missing or unknown, and what to do next."""
    from clipspm.cache.store import is_cache

    if is_cache(place):
        caches.cache_verify(place, as_json=as_json)
        return
    from clipspm.train_heads import examine
    from clipspm.train_heads.doctor import run_to_examine

    path = run_to_examine(place)
    load_torch(None)
    found = examine(path)
    tell(as_json, found.as_dict(), found.table())
    if not found.ok:
        bad = [file.name for file in found.files if file.state in ("damaged", "missing")]
        raise ClipspmError(f"{found.run}: {', '.join(bad)} {'are' if len(bad) > 1 else 'is'} not whole")


@app.command("env")
def environment(as_json: Json = False) -> None:
    """What of this machine the package can use, what is missing, and how to get it."""
    from clipspm.machine import described, tables

    load_torch(None)
    found = described()
    tell(as_json, found, *tables(found))


@app.command()
def results(
    places: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs, or folders of runs (default: all under $CLIPSPM_HOME).", metavar="RUN..."),
    ] = None,
    dataset: Annotated[str | None, own("Only this data set.", "Data")] = None,
    per_class: PerClass = False,
    no_published: Annotated[
        bool, own("Leave published numbers out.", "Evaluation", "--no-published")
    ] = False,
    format: FormatOf = "terminal",
    out_path: TableFile = None,
    as_json: Json = False,
) -> None:
    """One table of any number of evaluated runs; what is not comparable is marked."""
    from clipspm.train_heads import collect

    _check_file(out_path)
    found = collect(places or (), dataset=dataset)
    for line in found.skipped:
        say(f"note: left out: {line}")
    tables = [found.table()]
    if not no_published and (beside := found.published_table()):
        tables.append(beside)
    if per_class:
        tables += found.class_tables()
    write(
        tables,
        "json" if as_json else format,
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
        str | None, own("Hash of the episodes.", "Episodes", shown="the newest that both have")
    ] = None,
    as_json: Json = False,
) -> None:
    """A minus B on the same episodes, paired, with a bootstrap interval."""
    from clipspm.train_heads import compare as run

    result = run(first, second, episodes=episodes)
    tell(as_json, result.as_dict(), result.table())


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="The authors' checkpoint (torch.save or .safetensors).")],
    preset: Annotated[str, own("Data set whose values of the method it was trained with.", "Training")],
    out_path: Annotated[Path, own("The run directory to write.", "Output", "--out")],
    base: Annotated[
        str, own("Tag or file that the text tower comes from, if the file holds a visual one.", "Encoder")
    ] = "openai",
    model: Annotated[
        str | None, own("open_clip architecture.", "Encoder", shown="told by the tower's shapes")
    ] = None,
    weights_out: Annotated[
        Path | None, own("The encoder to write.", "Output", shown="RUN/encoder.safetensors")
    ] = None,
    heads_only: Annotated[bool, own("Leave the visual tower out.", "Encoder", "--heads-only")] = False,
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
    tell(
        as_json,
        {"run": str(out_path), "preset": preset, "dim": found.head.dim, "encoder": encoder},
        f"run: {out_path} (clip-spm, D = {found.head.dim})",
        f"next: clipspm extract {taken}",
        f"then: clipspm eval {shlex.quote(str(out_path))} --cache CACHE",
    )


@app.command()
@options_of(given=TrainConfig, engine=EngineConfig, without=("head", "seed"))
def ablate(
    *,
    drop: Annotated[
        list[str] | None,
        own(
            "A module (hsmr, spm, padm), evidence (look, still, move, drift, text) or layer (8:mean, final); "
            "several joined by + (repeatable).",
            "Rows",
        ),
    ] = None,
    grid: Annotated[bool, own("All eight combinations.", "Rows", "--grid")] = False,
    against: Annotated[
        list[str] | None, own("Another head as a row (repeatable); all: every other of the package.", "Rows")
    ] = None,
    cache: CachePath = None,
    dataset: CacheOf = None,
    splits: Splits = None,
    allow_partial: AllowPartial = False,
    shots: Annotated[
        str | None, own("Support videos per class; several like 1,3,5.", "Episodes", shown="1")
    ] = None,
    given: Given,
    seeds: Annotated[str, own("Training seeds, separated by commas.", "Training")] = "0",
    config_file: ConfigFile = None,
    test_episodes: TestEpisodes = 10_000,
    out_path: Annotated[
        Path | None, own("Where cells and tables go.", "Output", "--out", shown="under $CLIPSPM_HOME")
    ] = None,
    dry_run: Annotated[
        bool, own("Only check it, and say what would be trained.", "Output", "--dry-run")
    ] = False,
    with_report: look.WithReport = True,
    device: Annotated[
        str | None,
        own("As for train-heads; several, like cuda:0,cuda:0, train so many cells at a time.", "Machine"),
    ] = None,
    threads: Threads = None,
    engine: Given,
    as_json: Json = False,
) -> None:
    """Train the full model and the model without some part, on the same seeds and episodes."""
    from clipspm.cache.home import runs_dir
    from clipspm.train_heads.config import resolve_config
    from clipspm.train_heads.episodes.data import Data
    from clipspm.train_heads.experiments.rows import ablation_rows
    from clipspm.train_heads.places import cache_title

    spread = engine_of(engine, devices=device)
    if spread.devices:
        given["device"] = spread.devices[0]
    chosen: dict[str, Any] = {"file": config_file, "overrides": given}
    rows: dict[str, Any] = {"drops": drop or (), "grid": grid, "heads": against or ()}
    wanted = numbers("--shots", shots) if shots else []
    every = numbers("--seeds", seeds)
    config = resolve_config(**chosen)  # mistakes are said before anything is read
    ablation_rows(config, **rows)
    for count in wanted:
        replace(config, shots=count)
    source = open_source(cache, dataset, splits).require(
        ("train", "val", "test"), allow_partial=allow_partial
    )
    config = resolve_config(dataset=source.spec.dataset, **chosen)
    data = Data(source, config.device)
    folder = out_path or runs_dir() / f"ablate-{cache_title(data)}-{data.spec.fingerprint[:8]}"
    asked: dict[str, Any] = {
        **rows,
        "shots": wanted or [config.shots],
        "seeds": every,
        "out_dir": folder,
        "episodes": test_episodes,
        "engine": spread,
    }
    load_torch(threads)
    from clipspm.train_heads import ablate_shots
    from clipspm.train_heads.experiments.ablate import describe_plans, plan_shots, plans_table

    if dry_run:
        plans = plan_shots(data, config, **asked)
        tell(as_json, describe_plans(plans), plans_table(plans))
        return
    with resumable("finished cells and the last checkpoint are"):
        result = ablate_shots(data, config, **asked)
    tell(as_json, result.as_dict(), result.table(), f"tables: {folder}/ablation.json, .csv, .tex")
    if with_report:
        look.report_beside(folder, [cell for one in result.results for row in one.rows for cell in row.cells])


# --------------------------------------------------------------------------------------------- together


@app.command()
def demo(
    world: Annotated[
        str,
        own(
            "motion, look, both, told or lied: what tells classes apart, and what names say; or all.", "Data"
        ),
    ] = "motion",
    all_splits: Annotated[bool, own("All three class splits.", "Data", "--all-splits")] = False,
    quick: Annotated[bool, own("Fewer clips and episodes.", "Data", "--quick")] = False,
    folder: Annotated[
        Path | None,
        own("Where videos, cache and runs go.", "Output", "--out", shown="$CLIPSPM_HOME/demo"),
    ] = None,
    dry_run: Annotated[bool, own("Only say what would be rendered.", "Output", "--dry-run")] = False,
    with_report: look.WithReport = True,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Render videos of moving shapes, encode them, train, ablate: the whole pipeline in minutes.

    Exit code 1: the default model did not do what it should, beat the mean-frame prototype where only motion
    tells classes apart, and elsewhere not fall behind the best control by more than the interval.
    """
    from clipspm.cache.home import demo_dir
    from clipspm.extract.demo.plan import describe_worlds, plan_table
    from clipspm.extract.demo.worlds import find_worlds

    worlds, where = find_worlds(world), folder or demo_dir()
    if dry_run:
        found = describe_worlds(where, worlds, quick=quick)
        tell(as_json, {"dry_run": True, "worlds": found}, plan_table(found))
        return
    load_torch(threads)
    from clipspm.extract.demo.stage import extract_demo
    from clipspm.extract.progress import Watch, failure_table
    from clipspm.train_heads.demo import run_demo, worlds_table

    results = {}
    for drawn in worlds:
        with resumable("what is done is"):
            with Watch(Reporter()) as watch:
                cache, splits = extract_demo(
                    where,
                    world=drawn.name,
                    quick=quick,
                    on_message=watch.message,
                    on_progress=watch.progress,
                    on_failures=lambda result: err.print(failure_table(result)),
                )
            runs = drawn.folder(where) / "runs"
            used = splits if all_splits else splits[:1]
            result = results[drawn.name] = run_demo(cache, used, runs, telling=drawn.telling, quick=quick)
        if not as_json:
            tell(as_json, {}, result.table(), result.sentence())
            say(f"cache: {cache.path}; runs: {runs} (`clipspm results`)")
        if with_report:
            cells = [cell for row in result.splits[0].rows for cell in row.cells]
            look.report_beside(runs, cells, videos=drawn.videos(where))
    if len(worlds) > 1:
        by_world = {name: result.as_dict() for name, result in results.items()}
        tell(as_json, {"worlds": by_world}, worlds_table(results))
    elif as_json:
        tell(as_json, result.as_dict())
    if not as_json:
        say(f"next: clipspm train-heads --cache {cache.path}")
    if not all(result.convincing for result in results.values()):
        raise typer.Exit(1)


# ---------------------------------------------------------------------------------------------- helpers


def _run_to_resume(run_dir: Path) -> Any:
    """The run in ``run_dir``, or of that name under the home; None, and a note, where there is none."""
    from clipspm.train_heads.places import run_at
    from clipspm.train_heads.runs import CONFIG, Run

    if os.path.lexists(run_at(run_dir) / CONFIG):
        return Run.open(run_dir)
    say(f"note: there is nothing to resume in {run_dir}: a new run begins there")
    return None


def _silent(line: str) -> None:
    pass


def _check_file(path: Path | None) -> None:
    """Refuse, before any work, a file that could not be written."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}")
    if path is not None and path.is_dir():
        raise UsageError(f"--out {path} is a folder: name a file in it")
    if path is not None:
        from clipspm.cache.home import check_outside

        check_outside(path)


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
    logger.error("%s", one_line(message), exc_info=True)
    err.print(f"error: {one_line(message)}")
    sys.exit(code)


if __name__ == "__main__":
    main()
