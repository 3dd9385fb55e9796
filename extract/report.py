"""Report which videos of a data set are on this disk and readable, before a long extraction."""

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from clipspm.cache.spec import SPLITS
from clipspm.errors import UsageError
from clipspm.extract.config import MEMORY
from clipspm.extract.datasets import BENCHMARKS, Index, benchmark
from clipspm.extract.decode import count_frames
from clipspm.extract.decode_pool import limit_memory
from clipspm.extract.failures import DecodeError
from clipspm.extract.suffixes import stem
from clipspm.progress import track
from clipspm.tables import Table

#: files per task, and a task's time limit in seconds
_AT_A_TIME, _LIMIT = 64, 60.0

#: (number of frames, "", "") if the file could be opened, else (None, category, message)
Outcome = tuple[int | None, str, str]


@dataclass(frozen=True)
class ClassReport:
    """The numbers of one class; ``expected``: its videos in the complete data set."""

    name: str
    split: str
    expected: int
    found: int
    unreadable: int
    duplicates: int
    too_short: int

    @property
    def missing(self) -> int:
        """Expected videos that were not found."""
        return max(0, self.expected - self.found)

    @property
    def usable(self) -> int:
        """Videos that were found, are readable and long enough."""
        return self.found - self.unreadable - self.too_short


@dataclass(frozen=True)
class CheckReport:
    """The report on all classes.

    ``needed``: usable videos that a class needs; ``opened``: whether the files were opened; ``problems``:
    (path, category, message) of each video that is unreadable or too short.
    """

    index: Index
    classes: tuple[ClassReport, ...]
    needed: int
    opened: bool
    problems: tuple[tuple[str, str, str], ...]

    @property
    def too_few(self) -> tuple[ClassReport, ...]:
        """Classes with a split that have fewer usable videos than needed."""
        return tuple(c for c in self.classes if c.split != "none" and c.usable < self.needed)

    @property
    def enough(self) -> bool:
        """Whether every class with a split has enough usable videos."""
        return not self.too_few

    def totals(self) -> dict[str, Counter[str]]:
        """The number of classes and the sums of their numbers, by split."""
        sums: dict[str, Counter[str]] = {}
        for one in self.classes:
            counts = {"classes": 1, **{name: getattr(one, name) for name in _COLUMNS}}
            sums.setdefault(one.split, Counter()).update(counts)
        return sums

    def to_json(self) -> dict[str, Any]:
        """The report in plain JSON types."""
        return {
            "dataset": self.index.dataset,
            "root": str(self.index.root),
            "notes": list(self.index.notes),
            "opened": self.opened,
            "needed_per_class": self.needed,
            "enough": self.enough,
            "splits": {split: dict(counts) for split, counts in self.totals().items()},
            "classes": [
                {"class": c.name, "split": c.split, **{name: getattr(c, name) for name in _COLUMNS}}
                for c in self.classes
            ],
            "problems": [
                dict(zip(("path", "category", "error"), problem, strict=True)) for problem in self.problems
            ],
        }

    def table(self) -> Table:
        """A table of the classes with problems, and one line per split."""
        rows = [
            (one.name, one.split, *(str(getattr(one, name)) for name in _COLUMNS))
            for one in self.classes
            if one.missing or one.duplicates or one.usable < one.found or one in self.too_few
        ]
        rows += [
            (f"{sums['classes']} classes", split, *(str(sums[name]) for name in _COLUMNS))
            for split, sums in self.totals().items()
        ]
        columns = ("class", "split", *(column.replace("_", " ") for column in _COLUMNS))
        return Table(columns, rows, f"{self.index.dataset} at {self.index.root}", text=("split",))

    def sentence(self) -> str:
        """The result in one line."""
        looked = "" if self.opened else " (files were not opened)"
        if self.enough:
            return f"every class has at least {self.needed} usable videos{looked}; only gaps are shown"
        worst = min(self.too_few, key=lambda c: c.usable)
        return (
            f"{len(self.too_few)} classes have fewer than {self.needed} usable videos, {worst.name!r} has "
            f"{worst.usable}{looked}"
        )


_COLUMNS = ("expected", "found", "missing", "unreadable", "duplicates", "too_short", "usable")


def check(
    index: Index,
    *,
    min_frames: int = 1,
    needed: int = 6,
    open_files: bool = True,
    workers: int | None = None,
) -> CheckReport:
    """Check every video of ``index``; ``open_files`` reads its packets, without decoding.

    ``needed``: videos that a class needs for an episode, shots plus queries. Raises :class:`UsageError` if
    ``workers`` is below 1.
    """
    videos = index.plan.videos
    outcomes: list[Outcome] = [(None, "", "")] * len(videos)
    if open_files:
        probed = _probe([index.root / video.path for video in videos], workers)
        outcomes = list(track(probed, "looking at", len(videos), "videos"))
    unreadable: Counter[str] = Counter()
    short: Counter[str] = Counter()
    problems = []
    for video, (frames, category, error) in zip(videos, outcomes, strict=True):
        if category:
            unreadable[video.class_name] += 1
            problems.append((video.path, category, error))
        elif frames is not None and frames < min_frames:
            short[video.class_name] += 1
            problems.append((video.path, "too short", f"{frames} frames, at least {min_frames} required"))
    found = Counter(video.class_name for video in videos)
    names = Counter((v.class_name, stem(v.path)) for v in videos)
    copies = Counter({name: len(paths) for name, paths in index.copies.items()})
    for (name, _), count in names.items():
        copies[name] += count - 1
    classes = tuple(
        ClassReport(name, split, expected, found[name], unreadable[name], copies[name], short[name])
        for name, split, expected in index.plan.classes()
    )
    return CheckReport(index, classes, needed, open_files, tuple(problems))


def _probe(paths: Sequence[Path], workers: int | None) -> Iterator[Outcome]:
    """Open each path and yield the outcomes in order.

    If a task crashes or hangs, its files are opened again one by one to find the culprit.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}, it must be 1 or more")
    parts = [tuple(paths[i : i + _AT_A_TIME]) for i in range(0, len(paths), _AT_A_TIME)]
    with ProcessPool(
        max_workers=workers or min(16, os.cpu_count() or 1),
        initializer=limit_memory,
        initargs=(MEMORY,),
        context=get_context("spawn"),
    ) as pool:
        futures = [pool.schedule(_count_all, args=[part], timeout=_LIMIT) for part in parts]
        for part, future in zip(parts, futures, strict=True):
            try:
                yield from future.result()
            except (ProcessExpired, TimeoutError):
                for path in part:
                    yield _look_at_one(pool, path)


def _look_at_one(pool: ProcessPool, path: Path) -> Outcome:
    try:
        found: list[Outcome] = pool.schedule(_count_all, args=[(path,)], timeout=_LIMIT).result()
        return found[0]
    except TimeoutError:
        return None, "timeout", f"not opened within {_LIMIT:g} s"
    except ProcessExpired as error:
        if error.exitcode == -signal.SIGKILL:
            return None, "out of memory", "the process was killed while opening it"
        return None, "crashed", f"the process ended with exit code {error.exitcode} while opening it"


def _count_all(paths: tuple[Path, ...]) -> list[Outcome]:
    found: list[Outcome] = []
    for path in paths:
        try:
            found.append((count_frames(path), "", ""))
        except DecodeError as error:
            found.append((None, error.category, error.detail))
        except Exception as error:  # such as a path with a NUL byte
            found.append((None, "unreadable", f"{type(error).__name__}: {error}"))
    return found


def describe_benchmarks() -> list[dict[str, Any]]:
    """The five benchmarks: classes and videos per split, and their sources."""
    rows = []
    for name in BENCHMARKS:
        about = benchmark(name)
        splits = {
            split: {"classes": len(listed), "videos": sum(count for _, _, count in listed)}
            for split, listed in about.classes.items()
        }
        rows.append({"name": name, "splits": splits, "about": about.about, "home": about.home})
    return rows


def describe_demos() -> list[dict[str, Any]]:
    """The drawn data sets, in the form of :func:`describe_benchmarks`; their videos are rendered here."""
    from clipspm.extract.demo import WORLDS
    from clipspm.extract.demo.plan import CLIPS

    return [
        {
            "name": world.dataset,
            "splits": {
                split: {"classes": len(world.splits[0][split]), "videos": CLIPS * len(world.splits[0][split])}
                for split in ("train", "val", "test")
            },
            "about": f"drawn: {world.about}",
            "home": f"clipspm demo --world {world.name}",
        }
        for world in WORLDS.values()
    ]


def benchmarks_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The result of :func:`describe_benchmarks` and :func:`describe_demos` as a table."""
    lines = []
    for row in rows:
        parts = [row["splits"][split] for split in SPLITS if split in row["splits"]]
        cells = ("/".join(str(part[what]) for part in parts) for what in ("classes", "videos"))
        lines.append((row["name"], *cells, row["about"]))
    return Table(("data set", "classes", "videos", "split"), lines, "train/val/test", text=("split",))
