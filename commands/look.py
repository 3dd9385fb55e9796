"""``clipspm report`` and ``diagnose``: what runs show, on a page and in tables."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clipspm.commands.common import AllowPartial, Json, load_torch, say, tell
from clipspm.errors import ClipspmError, UsageError
from clipspm.options import like, own
from clipspm.train_heads.config import TrainConfig

Device = Annotated[str | None, like(TrainConfig, "device")]
Threads = Annotated[int | None, own("Threads to compute with on a CPU.", "Machine", min=1, shown="all cores")]
WithReport = Annotated[
    bool, own("Write report.html beside the tables (see clipspm report).", "Output", "--report/--no-report")
]
CacheOfRun = Annotated[Path | None, own("The cache.", "Data", "--cache", shown="the run's")]
Videos = Annotated[
    Path | None,
    own(
        "The videos, for pictures of them.",
        "Data",
        "--videos",
        shown="beside the cache, or where extract looks",
    ),
]


def report(
    *,
    places: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs, or folders of runs (default: all under $CLIPSPM_HOME).", metavar="RUN..."),
    ] = None,
    cache: CacheOfRun = None,
    videos: Videos = None,
    episodes: Annotated[
        int, own("Test episodes for each measurement on the cache.", "Episodes", "--test-episodes", min=2)
    ] = 100,
    out_path: Annotated[Path, own("The page to write.", "Output", "--out")] = Path("report.html"),
    figures: Annotated[
        Path | None, own("Write each figure into this folder too, as SVG and PNG.", "Output", "--figures")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about runs: tables, figures, mistakes with pictures, and what identifies them.

    Details are about the first RUN, or of a folder its ablation's first row.
    """
    from clipspm.look.files import check_places, check_target

    check_places(places or ())
    check_target("--out", out_path)
    if videos is not None and not videos.exists():
        raise UsageError(f"--videos {videos} does not exist")
    if figures is not None and figures.exists() and not figures.is_dir():
        raise UsageError(f"--figures {figures} is a file: name a folder")
    load_torch(threads)
    from clipspm.look.page import write_report

    found = write_report(
        out_path,
        places or (),
        cache=cache,
        videos=videos,
        episodes=episodes,
        device=device or "auto",
        figures=figures,
    )
    for line in found.notes():
        say(f"note: {line}")
    content = {
        "report": str(out_path),
        "about": found.facts.focus.row,
        "figures": str(figures) if figures else None,
    }
    tell(as_json, content, f"report: {out_path} (about {found.facts.focus.row})")


def diagnose(
    *,
    places: Annotated[
        list[Path], typer.Argument(help="Runs, or folders of them; it is about the first.", metavar="RUN...")
    ],
    cache: CacheOfRun = None,
    allow_partial: AllowPartial = False,
    episodes: Annotated[
        int, own("Test episodes of each measurement.", "Episodes", "--test-episodes", min=2)
    ] = 500,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """How a head fares with time, with classes that look alike, and with the gap between texts and videos."""
    from clipspm.look.files import check_places, open_runs

    check_places(places)
    runs = open_runs(places)
    load_torch(threads)
    from clipspm.look.diagnose import diagnose as measure
    from clipspm.look.subject import load_all

    subjects = load_all(runs, cache, device=device or "auto", allow_partial=allow_partial)
    found = measure(subjects, episodes=episodes)
    tell(as_json, found.as_dict(), *found.tables())


def report_beside(folder: Path, places: list[Path], **how: Any) -> None:
    """Write ``report.html`` into ``folder``; what goes wrong with it is a note, since the work is done."""
    from clipspm.look.page import write_report

    target = folder / "report.html"
    try:
        found = write_report(target, places, **how)
    except ClipspmError as error:
        say(f"note: no report: {error}")
        return
    for line in found.notes():
        say(f"note: {line}")
    say(f"report: {target}")
