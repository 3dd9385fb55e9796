"""Show the progress and the result of an extraction."""

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from clipspm.cache.disk import size_text
from clipspm.progress import Advance, Reporter
from clipspm.terminal import escaped

if TYPE_CHECKING:
    from clipspm.extract.pipeline import ExtractResult, Progress


class Watch:
    """A context manager with the callbacks of ``extract``: ``message`` (on_start) and ``progress``."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._stack = ExitStack()
        self._advance: Advance | None = None
        self._count = 0

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def message(self, text: str) -> None:
        """Print one line about the run as a whole."""
        self.reporter.say(text)

    def progress(self, now: "Progress") -> None:
        """Update the bar; called after every video."""
        if self._advance is None:
            self._advance = self._stack.enter_context(self.reporter.task("extracting", now.total, "videos"))
        count = now.done + now.failed
        failed = f"{now.failed} failed, " if now.failed else ""
        self._advance(count - self._count, f"{failed}{count / max(now.elapsed, 1e-9):.1f}/s")
        self._count = count


def summary(result: "ExtractResult", reporter: Reporter) -> None:
    """Print what was done, with a table of failures by reason."""
    if result.dry_run:
        reporter.say(
            f"dry run: {result.videos} videos would take about {size_text(result.bytes_needed)} "
            f"({size_text(result.bytes_free)} are free) at "
            f"{result.path} (fingerprint {result.fingerprint[:16]}); {result.already} are already done"
        )
        return
    tried = result.videos - result.already
    rate = tried / max(result.seconds, 1e-9)
    split = ", ".join(f"{name} {value:.0%}" for name, value in result.share.items())
    reporter.say(
        f"{result.done} videos extracted in {result.seconds:.1f} s ({rate:.1f} videos/s; {split}), "
        f"{result.already} were done before; {len(result.failures)} of all {result.videos} failed"
    )
    if result.failures:
        reporter.console.print(failure_table(result))
    reporter.say(f"cache: {result.path} (fingerprint {result.fingerprint[:16]})")


def failure_table(result: "ExtractResult") -> Table:
    """A table of the failed videos by reason, with an example of each."""
    table = Table(title="videos that could not be read", title_justify="left")
    for column in ("reason", "videos", "for example"):
        table.add_column(column, overflow="fold")
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for path, category, error in result.failures:
        by_reason.setdefault(category, []).append((path, error))
    for reason, rows in sorted(by_reason.items()):
        table.add_row(reason, str(len(rows)), Text(escaped(f"{rows[0][0]}: {rows[0][1]}")))
    return table
