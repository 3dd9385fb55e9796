"""What the commands share: how their help looks, the options that several have, and how they speak."""

import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from clipspm import __version__
from clipspm.engines.base import EngineConfig
from clipspm.errors import UsageError
from clipspm.extract.config import ExtractConfig
from clipspm.options import Given, like, own
from clipspm.progress import heard, logger
from clipspm.tables import Format
from clipspm.terminal import Terminal, escaped, one_line

Function = TypeVar("Function", bound=Callable[..., Any])
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
#: columns of the names of options in the help
_NAMES = 28


class Command(TyperCommand):
    """A command whose help has its options under the headings of their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                argument = param.param_type_name == "argument"
                panel = getattr(param, "rich_help_panel", None) or ("Arguments" if argument else "Output")
                # typer 0.20 writes [ as rich would have it
                sections.setdefault(panel, []).append(
                    (record[0].ljust(_NAMES), record[1].replace("\\[", "["))
                )
        for panel, records in sections.items():
            with formatter.section(panel):
                formatter.write_dl(records, col_max=_NAMES)


class App(typer.Typer):
    """Commands whose help, in plain text, is what a bare call shows."""

    def __init__(self, help: str, **more: Any) -> None:
        super().__init__(
            help=help,
            invoke_without_command=True,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            context_settings=_CONTEXT,
            **more,
        )

    def command(self, name: str | None = None, **more: Any) -> Callable[[Function], Function]:
        return super().command(name, cls=Command, **more)


err = Terminal(stderr=True)
out = Terminal()

Json = Annotated[bool, own("One JSON object on standard output.", "Output", "--json")]
CachePath = Annotated[Path | None, own("The cache.", "Data", "--cache", shown="the newest")]
CacheOf = Annotated[str | None, own("The newest cache of this data set.", "Data", "--dataset")]
Splits = Annotated[Path | None, like(ExtractConfig, "splits")]
AllowPartial = Annotated[
    bool, own("Leave out what is missing or damaged in the cache.", "Data", "--allow-partial")
]
Unbalanced = Annotated[
    bool,
    own("Queries shared out by Dirichlet(2) instead of as many per class.", "Episodes", "--unbalanced"),
]
TestEpisodes = Annotated[
    int, own("Test episodes, drawn once and named by a hash.", "Episodes", "--test-episodes", min=1)
]
SourceDisjoint = Annotated[
    bool, own("No query cut from the same source as a support.", "Episodes", "--source-disjoint")
]
SourcePattern = Annotated[
    str | None,
    own("Regular expression whose first group is a video's source (implies --source-disjoint).", "Episodes"),
]


def help_alone(context: typer.Context) -> None:
    """Show the help where no command is named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def open_source(cache: Path | None, dataset: str | None, splits: Path | None) -> Any:
    """The cache at ``cache``, or the newest (of ``dataset``), under ``splits`` if they are given."""
    from clipspm.cache import find_cache, open_cache

    path = find_cache(cache, dataset)
    say(f"cache: {path}")
    found = open_cache(path)
    if splits is not None:
        from clipspm.extract.datasets import apply_splits, read_splits

        found = found.with_splits(apply_splits(found.class_names, read_splits(splits), splits))
    return found


def kind_of(unbalanced: bool, source_disjoint: bool, pattern: str | None) -> dict[str, Any]:
    """The options of other kinds of episodes, as fields of an ``EpisodeSpec``."""
    if pattern in ("", "name"):
        raise UsageError(
            f"--source-pattern {pattern!r} says no source: give a regular expression with a group"
        )
    return {"dirichlet": 2 if unbalanced else 0, "sources": pattern or ("name" if source_disjoint else "")}


def tell(as_json: bool, content: dict[str, Any], *said: Any) -> None:
    """What was found out: one JSON object, or tables and lines."""
    if as_json:
        sys.stdout.write(json.dumps(content, indent=1, default=str) + "\n")
        return
    for part in said:
        out.print(part)


def say(line: str) -> None:
    """One line of news, on standard error."""
    if heard(line):
        err.print(one_line(line))


class _Lines(logging.Formatter):
    """Writes tracebacks without hidden characters."""

    def formatException(self, ei: Any) -> str:
        return "\n".join(escaped(line) for line in super().formatException(ei).splitlines())


def listen(verbose: bool, log_file: Path | None) -> None:
    """Add what is said to ``log_file``, and with ``verbose`` show where errors come from."""
    for handler in [*logger.handlers]:
        if not isinstance(handler, logging.NullHandler):
            logger.removeHandler(handler)
            handler.close()
    if verbose:
        shown = logging.StreamHandler()
        shown.setFormatter(_Lines())
        shown.addFilter(lambda record: record.exc_info is not None)
        logger.addHandler(shown)
    if log_file is not None:
        try:
            kept = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(f"--log-file {log_file}: cannot be written ({error.strerror})") from error
        kept.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(kept)
        logger.info("clipspm %s: %s", __version__, shlex.join(sys.argv[1:]))


@contextmanager
def resumable(what: str) -> Iterator[None]:
    """Say after Ctrl-C that ``what`` is kept, and on a full disk, that the same command goes on."""
    from clipspm.cache.disk import DiskFull

    try:
        yield
    except DiskFull as full:
        raise full.but() from full
    except KeyboardInterrupt as stop:
        stop.__notes__ = [f"{what} kept; go on with: clipspm {shlex.join(sys.argv[1:])}"]
        raise


def engine_of(given: Given, *, devices: str | None = None) -> EngineConfig:
    """The engine that a command is asked for."""
    from clipspm.cache.home import home
    from clipspm.engines.base import parse_devices

    return EngineConfig(**given, devices=parse_devices(devices), logs=home().absolute() / "slurm_logs")


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r}: expected whole numbers separated by commas, like 0,1,2"
        ) from error


def load_torch(threads: int | None) -> None:
    """Import PyTorch, which a cold disk makes a long wait, and set how many threads it computes with."""
    if "torch" not in sys.modules:
        say("loading PyTorch")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def write(
    tables: list[Any],
    format: Format,
    path: Path | None,
    *,
    csv: Callable[[], str],
    content: Callable[[], dict[str, Any]],
) -> None:
    """Results on the terminal, on standard output in another format, or in a file."""
    if format == "terminal" and path is None:
        for i, table in enumerate(tables):
            if i:
                out.print()
            out.print(table)
        return
    from clipspm.cache.disk import write_text
    from clipspm.tables import written

    text = written(format, tables, csv=csv, content=content)
    if path is None:
        sys.stdout.write(text)
    else:
        write_text(path, text)
        say(f"table: {path}")
