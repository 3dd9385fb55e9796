"""News and progress on standard error: a live bar on a terminal, plain lines elsewhere.

Long work of the library that has nobody to report to goes through :func:`track`: silent, unless a program
such as the command line asks to be :func:`shown` it.
"""

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
#: ``advance(count, note)``: so many more are done; the note stands beside the bar
Advance = Callable[[int, str], None]

Item = TypeVar("Item")

_PLAIN_EVERY = 10.0  # seconds between plain lines


#: who is shown what :func:`track` follows; None while there is a bar already
_shown: ContextVar["Reporter | None"] = ContextVar("shown", default=None)


@contextmanager
def shown(reporter: "Reporter | None" = None) -> Iterator[None]:
    """Show what :func:`track` follows inside the block, by default on standard error."""
    token = _shown.set(reporter or Reporter())
    try:
        yield
    finally:
        _shown.reset(token)


def track(items: Iterable[Item], title: str, total: int, unit: str) -> Iterator[Item]:
    """``items``, of which there are ``total``, with a bar where one is wanted."""
    reporter = _shown.get()
    if reporter is None or total < 2:
        yield from items
        return
    with reporter.task(title, total, unit) as advance:
        for item in items:
            yield item
            advance(1, "")


class Reporter:
    """Says lines and shows progress. With ``log``, all of it goes there as plain lines."""

    def __init__(self, log: Say | None = None) -> None:
        self._log = log
        self.console = Terminal(stderr=True)
        self._live = log is None and self.console.is_terminal

    def say(self, line: str) -> None:
        """One line of news."""
        if self._log is not None:
            self._log(line)
        elif self._live:
            self.console.print(one_line(line))
        else:
            print(one_line(line), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Yield what moves the bar; ``total`` and ``done`` count in ``unit`` (its plural, "episodes")."""
        token = _shown.set(None)  # one bar at a time
        try:
            yield from (self._bar if self._live else self._lines)(title, total, unit, done)
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
    """``12/340 videos``."""

    def render(self, task: Task) -> Text:
        return Text(f"{int(task.completed)}/{int(task.total or 0)} {task.fields['unit']}")


def bar(console: Console) -> Progress:
    """A bar that vanishes when it is done. Where there is little room, the note and then the bar give way."""
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
