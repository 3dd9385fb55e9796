"""Messages and progress on standard error: a live bar on a terminal, plain lines elsewhere.

Library code reports long loops through :func:`track`, which is silent unless a program such as the command
line turns it on with :func:`shown`. All lines go to the logger ``clipspm`` as well, whose handlers decide
what else becomes of them; :func:`hush` keeps what is no warning from standard error.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from clipspm.terminal import Terminal, one_line

Say = Callable[[str], None]
#: ``advance(count, note)``: ``count`` more items are done; ``note`` is shown beside the bar
Advance = Callable[[int, str], None]

Item = TypeVar("Item")

_PLAIN_EVERY = 10.0  # seconds between plain lines


#: the reporter that :func:`track` uses; None: show nothing, also while another bar is up
_shown: ContextVar["Reporter | None"] = ContextVar("shown", default=None)


logger = logging.getLogger("clipspm")
logger.addHandler(logging.NullHandler())
logger.setLevel(logging.INFO)
logger.propagate = False  # lines are on standard error already
#: whether only warnings are shown
_hushed: ContextVar[bool] = ContextVar("hushed", default=False)


def hush(on: bool = True) -> None:
    """Show warnings only on standard error, no progress and no news."""
    _hushed.set(on)


def heard(line: str) -> bool:
    """Log a line, and return whether it is to be shown."""
    warning = line.startswith(("warning:", "skipped "))
    logger.log(logging.WARNING if warning else logging.INFO, "%s", one_line(line))
    return warning or not _hushed.get()


@contextmanager
def shown(reporter: "Reporter | None" = None) -> Iterator[None]:
    """Let :func:`track` show progress inside the block, by default on standard error."""
    token = _shown.set(reporter or Reporter())
    try:
        yield
    finally:
        _shown.reset(token)


def track(items: Iterable[Item], title: str, total: int, unit: str) -> Iterator[Item]:
    """Yield the ``total`` ``items``, with a progress bar inside a :func:`shown` block."""
    reporter = _shown.get()
    if reporter is None or total < 2:
        yield from items
        return
    with reporter.task(title, total, unit) as advance:
        for item in items:
            yield item
            advance(1, "")


def remark(line: str) -> None:
    """Print one line inside a :func:`shown` block, unless a bar is up."""
    if (reporter := _shown.get()) is not None:
        reporter.say(line)


class Reporter:
    """Prints messages and progress. With ``log``, everything goes there as plain lines."""

    def __init__(self, log: Say | None = None) -> None:
        self._log = log
        self.console = Terminal(stderr=True)
        self._live = log is None and self.console.is_terminal

    def say(self, line: str) -> None:
        """Print one line."""
        wanted = heard(line)
        if self._log is not None:
            self._log(line)
        elif not wanted:
            return
        elif self._live:
            self.console.print(one_line(line))
        else:
            print(one_line(line), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Show progress and yield the function that advances it.

        ``total`` and ``done`` count items; ``unit`` names them in the plural, such as "episodes".
        """
        token = _shown.set(None)  # one bar at a time
        try:
            live = self._live and not _hushed.get()
            yield from (self._bar if live else self._lines)(title, total, unit, done)
        finally:
            _shown.reset(token)

    def _bar(self, title: str, total: int, unit: str, done: int) -> Iterator[Advance]:
        with bar(self.console) as progress:
            row = progress.add_task(one_line(title), total=total, completed=done, unit=unit, note="")

            def move(count: int, note: str = "") -> None:
                progress.update(row, advance=count, note=one_line(note))

            yield move

    def _lines(self, title: str, total: int, unit: str, done: int) -> Iterator[Advance]:
        began = spoke = time.monotonic()
        reached = done

        def advance(count: int, note: str = "") -> None:
            nonlocal reached, spoke
            reached += count
            now = time.monotonic()
            if now - spoke >= _PLAIN_EVERY and reached < total:
                spoke = now
                left = (now - began) / max(reached - done, 1) * (total - reached)
                self.say(f"{title}: {reached}/{total} {unit}, {note + ', ' * bool(note)}{left:.0f} s left")

        yield advance


class _Count(ProgressColumn):
    """The column ``12/340 videos``."""

    def render(self, task: Task) -> Text:
        return Text(f"{int(task.completed)}/{int(task.total or 0)} {task.fields['unit']}")


def bar(console: Console) -> Progress:
    """Build a bar that disappears when done. On a narrow terminal, first the note and then the bar shrink."""
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True), markup=False),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8, max_width=40)),
        _Count(Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        expand=True,
    )
