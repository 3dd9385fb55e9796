"""``clipspm reproduce``: a published table, measured from the videos to the numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from clipspm.commands.common import (
    Json,
    TestEpisodes,
    engine_of,
    load_torch,
    numbers,
    resumable,
    tell,
)
from clipspm.engines.base import EngineConfig
from clipspm.extract.config import ExtractConfig
from clipspm.options import Given, like, options_of, own
from clipspm.progress import Reporter
from clipspm.train_heads.config import TrainConfig


@options_of(
    asked=ExtractConfig,
    given=TrainConfig,
    engine=EngineConfig,
    without=("out", "overwrite", "limit", "seed", "recipe", "preset"),
)
def reproduce(
    *,
    dataset: Annotated[
        str,
        typer.Argument(
            help="hmdb51, ucf101, kinetics100, ssv2-full, ssv2-small, folder, manifest, demo or demo-WORLD.",
            metavar="DATASET",
        ),
    ],
    recipes: Annotated[str, own("Recipes, separated by commas.", "Rows")] = "default,official",
    shots: Annotated[str, own("Support videos per class, separated by commas.", "Rows")] = "1,3,5",
    seeds: Annotated[str, own("Training seeds, separated by commas.", "Rows")] = "0,1,2",
    asked: Given,
    test_episodes: TestEpisodes = 10_000,
    given: Given,
    cache: Annotated[
        Path | None, own("The cache to write, or to go on with.", "Output", shown="in the folder of --out")
    ] = None,
    out_path: Annotated[
        Path | None,
        own("Where cache, runs and table go.", "Output", "--out", shown="$CLIPSPM_HOME/reproduce/DATASET"),
    ] = None,
    dry_run: Annotated[
        bool, own("Only say what there is to do, and about how long it takes.", "Output", "--dry-run")
    ] = False,
    frames: Annotated[int | None, like(ExtractConfig, "frames")] = None,
    device: Annotated[str | None, like(ExtractConfig, "device")] = None,
    engine: Given,
    as_json: Json = False,
) -> None:
    """Measure a published table: extract, train and score every row, and set it beside what was published.

    Called again, it does only what is missing.
    """
    from clipspm.cache.home import home
    from clipspm.extract.plan import prepare
    from clipspm.extract.progress import Watch, summary
    from clipspm.train_heads.experiments.planned import Planned, PlannedSpec, fitted, rows_of

    folder = out_path or home() / "reproduce" / dataset
    path = cache or folder / ("cache.h5" if asked.get("format") == "hdf5" else "cache.zarr")
    asked |= {key: value for key, value in (("frames", frames), ("device", device)) if value is not None}
    config = ExtractConfig(dataset=dataset, **asked, out=path, engine=engine_of(engine), dry_run=dry_run)
    if config.devices:
        given["device"] = config.devices[0]
    rows: dict[str, Any] = {
        "recipes": recipes.split(","),
        "shots": numbers("--shots", shots),
        "seeds": numbers("--seeds", seeds),
        "overrides": given,
    }
    configs = rows_of(dataset, **rows)  # mistakes are said before anything is read
    with Watch(Reporter()) as watch, resumable("finished videos and runs, and the last checkpoint, are"):
        work = prepare(config, watch.message)
        plan = work.index.plan
        spec = PlannedSpec(
            dataset=dataset,
            model=str(work.config.model),
            has_text=bool(work.templates),
            frames=config.frames,
        )
        planned = Planned(spec, plan.videos, plan.class_names, plan.class_splits)
        ready = fitted(planned, configs, watch.message if dry_run else _silent)
        load_torch(config.threads)
        from clipspm.cache import open_cache
        from clipspm.extract.pipeline import run
        from clipspm.train_heads.experiments.reproduce import Reproduction

        def planned_runs() -> Reproduction:
            source = open_cache(path).require(("train", "val", "test"))
            return Reproduction.plan(source, configs, out=folder, episodes=test_episodes)

        if dry_run:
            from clipspm.extract.trial import try_out
            from clipspm.train_heads.experiments.reproduce import Forecast, forecast_rows

            trial = try_out(work, watch.message)
            complete = trial.already >= trial.videos
            states = planned_runs().states() if complete else ["to train"] * len(ready)
            shaped = replace(planned, spec=replace(spec, dims=trial.widths or spec.dims))
            left = trial.videos - trial.already
            forecast = Forecast(
                dataset=dataset,
                out=folder,
                videos=trial.videos,
                left=left,
                extract=None if trial.seconds is None else left * trial.seconds,
                unknown=trial.unknown,
                rows=forecast_rows(shaped, ready, states, test_episodes=test_episodes),
                test_episodes=test_episodes,
            )
            tell(as_json, forecast.as_dict(), forecast.table())
            return
        extracted = run(work, on_start=watch.message, on_progress=watch.progress)
    summary(extracted, watch.reporter)
    with resumable("finished videos and runs, and the last checkpoint, are"):
        result = planned_runs().run()
    content = {"dataset": dataset, "cache": str(extracted.path), "out": str(folder), **result.as_dict()}
    tell(as_json, content, result.table(), f"table: {folder}/reproduce.json, .csv, .md")
    if extracted.failures:
        raise typer.Exit(3)


def _silent(line: str) -> None:
    """Say nothing here: it is said again when there are features."""
