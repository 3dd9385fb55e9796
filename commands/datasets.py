"""``clipspm datasets``: the benchmarks, and what of them is on this disk."""

from pathlib import Path
from typing import Annotated

import typer

from clipspm.commands.common import App, Json, Splits, say, tell
from clipspm.extract.config import ExtractConfig
from clipspm.options import like, own

app = App("The benchmarks, and what of them is on this disk.")


@app.callback()
def datasets(context: typer.Context, as_json: Json = False) -> None:
    """The five benchmarks and the drawn worlds of the demo, with their classes and videos per split."""
    if context.invoked_subcommand is not None:
        return
    from clipspm.extract.report import benchmarks_table, describe_benchmarks, describe_demos

    found = [*describe_benchmarks(), *describe_demos()]
    tell(as_json, {"datasets": found}, benchmarks_table(found))


@app.command("check")
def datasets_check(
    dataset: Annotated[str, typer.Argument(help="A benchmark, folder or manifest.")],
    videos: Annotated[Path | None, like(ExtractConfig, "videos")] = None,
    splits: Splits = None,
    split_files: Annotated[Path | None, like(ExtractConfig, "split_files")] = None,
    min_frames: Annotated[int, own("Count videos with fewer frames as too short.", "Data")] = 1,
    shots: Annotated[int, own("Support videos per class that episodes will need.", "Episodes")] = 5,
    queries: Annotated[int, own("Queries per class that episodes will need.", "Episodes")] = 1,
    names_only: Annotated[bool, own("Do not open the files.", "Data", "--names-only")] = False,
    workers: Annotated[int | None, own("Processes that open files.", "Machine")] = None,
    as_json: Json = False,
) -> None:
    """Per class: expected, found, missing, unreadable, duplicates, too short, before extracting."""
    from clipspm.extract.datasets import index_dataset
    from clipspm.extract.report import check

    index = index_dataset(dataset, videos, splits, split_files)
    for note in index.notes:
        say(f"note: {note}")
    report = check(
        index, min_frames=min_frames, needed=shots + queries, open_files=not names_only, workers=workers
    )
    tell(as_json, report.to_json(), report.table(), report.sentence())
    if not report.enough:
        raise typer.Exit(1)
