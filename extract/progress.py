"""Show how an extraction goes: a live bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from clipspm.extract import pipeline

_LINE_EVERY = 10.0  # seconds between plain log lines


class Reporter:
    """Prints to ``console`` (standard error by default), as a context manager around ``extract``."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task = None
        self._last_line = time.perf_counter()

    def __enter__(self) -> "Reporter":
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("extracting"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def message(self, text: str) -> None:
        """One line about the run as a whole."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, now: pipeline.Progress) -> None:
        """Called after every video."""
        count = now.done + now.failed
        rate = count / max(now.elapsed, 1e-9)
        split = ", ".join(f"{name} {value:.0%}" for name, value in now.share().items())
        detail = f"{now.failed} failed, {rate:.1f} videos/s, {split}"
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("", total=now.total, detail=detail)  # type: ignore[assignment]
            self._bar.update(self._task, completed=count, detail=detail)  # type: ignore[arg-type]
        elif time.perf_counter() - self._last_line > _LINE_EVERY:
            self._last_line = time.perf_counter()
            left = (now.total - count) / max(rate, 1e-9)
            self.message(f"{count}/{now.total} videos, {detail}, {left:.0f} s left")

    def summary(self, result: "pipeline.ExtractResult") -> None:
        """What was done, and a table of failures by reason."""
        if result.dry_run:
            self.message(
                f"dry run: {result.videos} videos would take about {result.bytes_needed / 1e6:.1f} MB "
                f"({result.bytes_free / 1e6:.0f} MB are free) at "
                f"{result.path} (fingerprint {result.fingerprint[:16]}); {result.already} are done already"
            )
            return
        tried = result.videos - result.already
        rate = tried / max(result.seconds, 1e-9)
        split = ", ".join(f"{name} {value:.0%}" for name, value in result.share.items())
        self.message(
            f"{result.done} videos extracted in {result.seconds:.1f} s ({rate:.1f} videos/s; {split}), "
            f"{result.already} were done before; {len(result.failures)} of all {result.videos} failed"
        )
        if result.failures:
            table = Table(title="videos that could not be read", title_justify="left")
            for column in ("reason", "videos", "for example"):
                table.add_column(column, overflow="fold")
            by_reason: dict[str, list[tuple[str, str]]] = {}
            for path, category, error in result.failures:
                by_reason.setdefault(category, []).append((path, error))
            for reason, rows in sorted(by_reason.items()):
                table.add_row(reason, str(len(rows)), f"{rows[0][0]}: {rows[0][1]}")
            self.console.print(table, markup=False)
        self.message(f"cache: {result.path} (fingerprint {result.fingerprint[:16]})")
