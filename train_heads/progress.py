"""Progress on standard error: a live bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Say = Callable[[str], None]
Advance = Callable[[int, str], None]

_PLAIN_EVERY = 15.0  # seconds between plain lines


class Reporter:
    """Says lines and shows progress. With ``log``, everything goes there as plain lines."""

    def __init__(self, log: Say | None = None) -> None:
        self._log = log
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = log is None and self._console.is_terminal

    def say(self, line: str) -> None:
        """One line of news."""
        if self._log is not None:
            self._log(line)
        elif self._live:
            self._console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Yield ``advance(count, note)``; the counts add up to ``total``, ``done`` of it done already."""
        if self._live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=self._console, transient=True) as progress:
                bar = progress.add_task(title, total=total, completed=done, note="")

                def move(count: int, note: str = "") -> None:
                    progress.update(bar, advance=count, note=note)

                yield move
            return
        reached, spoke = done, time.monotonic()

        def advance(count: int, note: str = "") -> None:
            nonlocal reached, spoke
            reached += count
            if time.monotonic() - spoke >= _PLAIN_EVERY:
                spoke = time.monotonic()
                self.say(f"{title}: {reached}/{total}{'  ' + note if note else ''}")

        yield advance
