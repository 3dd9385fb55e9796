"""``clipspm cache``: look at caches, verify them, make others of them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipspm.cache.spec import ExportFormat, Format
from clipspm.commands.common import (
    AllowPartial,
    App,
    Json,
    help_alone,
    say,
    tell,
)
from clipspm.options import own

CacheTarget = Annotated[Path, typer.Argument(help="The new one.", metavar="TARGET")]
CacheSource = Annotated[Path, typer.Argument(help="The cache.", metavar="CACHE")]
CacheFormat = Annotated[Format | None, own("Container.", "Output", "--format", shown="by name, .h5 is HDF5")]

app = App("Look at caches, verify them, and make others of them.")
app.callback()(help_alone)


@app.command("info")
def cache_info(path: CacheSource, as_json: Json = False) -> None:
    """What a cache holds and what its numbers depend on."""
    from clipspm.cache import open_cache

    summary = open_cache(path).summary()
    said = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in summary.items()}
    tell(as_json, summary, *(f"{key:<12} {value}" for key, value in said.items()))


@app.command("list")
def cache_list(as_json: Json = False) -> None:
    """The caches under $CLIPSPM_HOME, newest last."""
    from clipspm.cache.reader import describe_caches, home_table

    found = describe_caches()
    tell(as_json, {"caches": found}, *([home_table(found)] if found else []))
    if not (found or as_json):
        say("no caches yet: `clipspm extract` or `clipspm demo` makes one")


@app.command("verify")
def cache_verify(
    path: CacheSource,
    repair: Annotated[
        bool, own("Queue what is damaged; the same extract does it again.", "Output", "--repair")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every byte again, compare it with its checksums, and name what is damaged."""
    from clipspm.cache.verify import repair as queue
    from clipspm.cache.verify import verify

    report = verify(path)
    videos = ", ".join(f"{count} {status}" for status, count in report.statuses.items())
    verdict = "complete and undamaged" if report.ok else f"{len(report.findings)} findings"
    tell(
        as_json,
        report.to_json(),
        *(f"{finding.where}: {finding.problem}" for finding in report.findings),
        f"{report.path}: {verdict} ({videos or 'no videos'})",
    )
    if repair:
        say(queue(report))
    elif not report.ok:
        raise typer.Exit(1)


@app.command("convert")
def cache_convert(source: CacheSource, target: CacheTarget, format: CacheFormat = None) -> None:
    """The same cache in the other container, bit for bit."""
    from clipspm.cache.transform import convert

    say(f"cache: {convert(source, target, format=format)}")


@app.command("merge")
def cache_merge(
    sources: Annotated[
        list[Path], typer.Argument(help="Caches with equal fingerprints.", metavar="CACHE...")
    ],
    target: Annotated[Path, own("The new one.", "Output", "--out")],
    format: CacheFormat = None,
) -> None:
    """One cache of several, such as parts extracted on different machines."""
    from clipspm.cache.transform import merge

    say(f"cache: {merge(sources, target, format=format)}")


@app.command("pack")
def cache_pack(
    source: CacheSource,
    target: CacheTarget,
    format: CacheFormat = None,
    allow_partial: AllowPartial = False,
) -> None:
    """A cache without the videos that failed, in one shard."""
    from clipspm.cache.transform import pack

    say(f"cache: {pack(source, target, format=format, allow_partial=allow_partial)}")


@app.command("export")
def cache_export(
    source: CacheSource,
    target: CacheTarget,
    format: Annotated[ExportFormat | None, own("Kind of file.", "Output", shown="by name")] = None,
    allow_partial: AllowPartial = False,
) -> None:
    """Features, text, labels and ids as one .npz or .safetensors file for other code."""
    from clipspm.cache.transform import export

    say(f"file: {export(source, target, format=format, allow_partial=allow_partial)}")


@app.command("push")
def cache_push(
    source: CacheSource,
    repo: Annotated[str, typer.Argument(help="ORGANISATION/NAME of a data set.", metavar="REPO")],
    private: Annotated[bool, own("Show it to nobody else.", "Output", "--private")] = False,
) -> None:
    """Share a finished cache on the Hugging Face hub, with where its numbers come from."""
    from clipspm.cache.hub import push

    say(f"shared: {push(source, repo, private=private)}")


@app.command("pull")
def cache_pull(
    repo: Annotated[str, typer.Argument(help="ORGANISATION/NAME of a data set.", metavar="REPO")],
    target: Annotated[
        Path | None, own("The new cache.", "Output", "--out", shown="under $CLIPSPM_HOME")
    ] = None,
    revision: Annotated[str | None, own("Branch, tag or commit.", "Data")] = None,
) -> None:
    """Fetch a cache that was shared, and compare every byte with its seal."""
    from clipspm.cache.hub import pull

    say(f"cache: {pull(repo, target, revision=revision)}")
