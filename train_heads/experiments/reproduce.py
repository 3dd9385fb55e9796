"""Measure a table row by row: every recipe, number of shots and seed is trained and scored once.

A run is a :class:`~.cells.Cell`: a directory named after its configuration and what the cache holds, so that
the same call goes on where one was killed, and a call for more does only what is new.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipspm.cache.disk import write_json, write_text
from clipspm.cache.lock import alone
from clipspm.progress import Reporter, Say
from clipspm.tables import Table
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, draw
from clipspm.train_heads.episodes.pool import FeatureSource
from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.experiments.cells import Cell, cell_name, score_cell
from clipspm.train_heads.experiments.planned import Planned, fitted
from clipspm.train_heads.experiments.results import Results, collect
from clipspm.train_heads.heads.protocol import PROTOCOLS
from clipspm.train_heads.training.loop import VALIDATIONS
from clipspm.train_heads.training.train import train

#: two trainings of so many steps, and two evaluations of so many episodes, say what one more takes
_STEPS, _SCORED = (1, 2), (8, 24)
#: videos of each class that a short measurement reads, beside the shots
_BESIDE_SHOTS = 12


@dataclass(frozen=True)
class Reproduction:
    """The runs of a table: ``cells``, and by number of shots the ``episodes`` that they are scored on."""

    data: Data
    cells: tuple[Cell, ...]
    episodes: dict[int, Episodes]
    out: Path

    @classmethod
    def plan(
        cls,
        source: Data | FeatureSource,
        configs: Sequence[TrainConfig],
        *,
        out: str | Path,
        episodes: int,
        say: Say | None = None,
    ) -> "Reproduction":
        """Plan a run per configuration under ``out``; nothing is trained or written.

        ``episodes``: number of test episodes. Raises :class:`UsageError` for what the cache cannot give.
        """
        data, out = Data.of(source, configs[0].device), Path(out).absolute()
        ready = fitted(data, configs, Reporter(say).say)
        cells = tuple(Cell(config, out / "runs" / cell_name(config, data)) for config in ready)
        drawn = {}
        for config in ready:
            if config.shots not in drawn:
                drawn[config.shots] = draw(_test_spec(data, config), data.pools["test"], episodes)
        return cls(data, cells, drawn, out)

    def states(self) -> list[str]:
        """Return the state of each cell, one of :data:`~.cells.STATES`."""
        return [cell.state(self.episodes[cell.config.shots], PROTOCOLS) for cell in self.cells]

    def run(self, log: Say | None = None) -> "Reproduced":
        """Train and score what is missing, and write ``reproduce.json``, ``.csv`` and ``.md``."""
        reporter, trained = Reporter(log), 0
        with _lock(self.out):
            for number, cell in enumerate(self.cells, 1):
                config = cell.config
                what = f"{config.recipe}, {config.shots}-shot, seed {config.seed}"
                reporter.say(f"run {number} of {len(self.cells)}: {what}")
                scored_on = self.episodes[config.shots]
                trained += score_cell(self.data, cell, scored_on, PROTOCOLS, log, keep_weights=True)[1]
            found = collect([cell.path for cell in self.cells])
            asked = {episodes.full_hash for episodes in self.episodes.values()}
            scores = tuple(score for score in found.scores if score.basis.episodes in asked)
            result = Reproduced(replace(found, scores=scores), trained, len(self.cells))
            result.save(self.out)
        return result


@dataclass(frozen=True)
class Reproduced:
    """What was measured; ``trained``: how many of the ``runs`` this call trained."""

    results: Results
    trained: int
    runs: int

    def table(self) -> Table:
        """Return what was measured beside what was published."""
        return self.results.beside_published()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for ``--json``; fractions, not per cent."""
        return {"runs": self.runs, "trained": self.trained, **self.results.as_dict()}

    def save(self, folder: Path) -> None:
        """Write ``reproduce.json``, ``reproduce.csv`` and ``reproduce.md``."""
        write_json(folder / "reproduce.json", self.results.as_dict())
        write_text(folder / "reproduce.csv", self.results.csv())
        write_text(folder / "reproduce.md", self.table().markdown())


def _test_spec(data: Data, config: TrainConfig) -> EpisodeSpec:
    """Return the test episodes that ``eval`` draws of itself."""
    return EpisodeSpec(dataset=data.spec.dataset, split="test", way=config.way, shot=config.shots)


def _lock(out: Path) -> AbstractContextManager[str]:
    lock, holder = out / ".reproduce.lock", out / ".reproduce.json"
    return alone(lock, holder, f"the table in {out} is being measured", ", or name another --out")


@dataclass(frozen=True)
class Pace:
    """Seconds that a run takes: to ``start``, per training ``step``, per ``test`` episode.

    ``held_out``: whether the weights are chosen on a part of the training set.
    """

    start: float
    step: float
    test: float
    held_out: bool

    @classmethod
    def measure(cls, planned: Planned, config: TrainConfig) -> "Pace":
        """Train a few steps and score a few episodes on random features of the planned videos."""
        data, started, looped = Data(planned.first(config.shots + _BESIDE_SHOTS), config.device), 0.0, []
        with TemporaryDirectory(prefix="clipspm-pace-") as folder:
            for number, steps in enumerate((1, *_STEPS)):  # the first warms up
                short = replace(config, episodes=steps * config.batch, val_episodes=1)
                run, begun = Path(folder, str(number)), time.perf_counter()
                trained = train(data, short, run, log=_silent)
                looped.append(trained.seconds)
                started = time.perf_counter() - begun - trained.seconds
            scored = []
            for count in _SCORED:
                few = draw(_test_spec(data, config), data.pools["test"], count)
                begun = time.perf_counter()
                evaluate(run, data, episodes=few, log=_silent)
                scored.append(time.perf_counter() - begun)
        step, test = _slope(_STEPS, looped[1:]), _slope(_SCORED, scored)
        return cls(started, step, test, trained.selection not in ("val", "none"))

    def seconds(self, config: TrainConfig, test_episodes: int) -> float:
        """Return what training and scoring ``config`` takes without an early stop or tuning at the end."""
        steps = -(-config.episodes // config.batch)
        validations = -(-config.episodes // config.val_every)
        if self.held_out:
            validations = max(validations, min(steps, VALIDATIONS))
        scored = test_episodes + validations * config.val_episodes / len(PROTOCOLS)
        return self.start + steps * self.step + scored * self.test


def _slope(counts: tuple[int, int], seconds: Sequence[float]) -> float:
    """Return the seconds for one more."""
    return max(0.0, seconds[1] - seconds[0]) / (counts[1] - counts[0])


@dataclass(frozen=True)
class Row:
    """The runs of one recipe and number of shots: ``config`` of the first, how many, and how many are left.

    ``seconds``: what is left takes about so long; None if that is unknown.
    """

    config: TrainConfig
    runs: int
    left: int
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for ``--json``."""
        names = {"recipe": self.config.recipe, "shots": self.config.shots, "episodes": self.config.episodes}
        return {**names, "runs": self.runs, "left": self.left, "seconds": self.seconds}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What there is to do: ``left`` of the ``videos``, then the ``rows``. ``extract``: seconds for videos.

    ``unknown``: why the time for videos is.
    """

    dataset: str
    out: Path
    videos: int
    left: int
    extract: float | None
    unknown: str
    rows: tuple[Row, ...]
    test_episodes: int

    @property
    def seconds(self) -> float | None:
        """All of it; None if a part is unknown."""
        parts = [self.extract, *(row.seconds for row in self.rows)]
        return None if None in parts else sum(part for part in parts if part is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for ``--json``."""
        return {
            "dry_run": True,
            "dataset": self.dataset,
            "out": str(self.out),
            "videos": {"planned": self.videos, "left": self.left, "seconds": self.extract},
            "runs": sum(row.runs for row in self.rows),
            "runs_left": sum(row.left for row in self.rows),
            "test_episodes": self.test_episodes,
            "rows": [row.as_dict() for row in self.rows],
            "seconds": self.seconds,
            "unknown": self.unknown,
        }

    def table(self) -> Table:
        """Return a line for the videos, one per recipe and number of shots, and their sum."""
        lines = [["extract (videos)", str(self.videos), str(self.left), "", duration(self.extract)]]
        for row in self.rows:
            name, each = f"{row.config.recipe}, {row.config.shots}-shot (runs)", str(row.config.episodes)
            lines.append([name, str(row.runs), str(row.left), each, duration(row.seconds)])
        lines.append(["all", "", "", "", duration(self.seconds)])
        notes = [
            "time: measured here on a few videos, and on a few steps with random features of the same shape; "
            "training may stop earlier; what is fitted on validation episodes after it is not counted",
            *[f"unknown: {self.unknown}"] * bool(self.unknown),
            f"each run is scored on {self.test_episodes} test episodes, inductive and transductive",
            f"runs and table: {self.out}",
            "nothing was trained or written",
        ]
        title = f"{self.dataset}: {self.rows[0].config.way}-way, what there is to do"
        return Table(["", "in all", "to do", "training episodes", "time"], lines, title, notes)


def forecast_rows(
    planned: Planned,
    configs: Sequence[TrainConfig],
    states: Sequence[str],
    *,
    test_episodes: int,
    say: Say | None = None,
) -> tuple[Row, ...]:
    """Return what the runs of each recipe and number of shots would take here, from short measurements.

    ``states``: of each run, as :meth:`Reproduction.states` gives them. Rows with nothing to do are not
    measured, and none is where the widths of the planned features are unknown (1).
    """
    reporter, rows = Reporter(say), []
    together = zip(configs, states, strict=True)
    for (recipe, shots), same in groupby(together, key=lambda pair: (pair[0].recipe, pair[0].shots)):
        ones = list(same)
        config, left = ones[0][0], sum(state != "finished" for _, state in ones)
        seconds = 0.0 if not left else None
        if left and max(planned.spec.dims.values()) > 1:
            reporter.say(f"measuring a few steps: {recipe}, {shots}-shot")
            seconds = left * Pace.measure(planned, config).seconds(config, test_episodes)
        rows.append(Row(config, len(ones), left, seconds))
    return tuple(rows)


def duration(seconds: float | None) -> str:
    """Return a length of time for people, to two digits or so."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _silent(line: str) -> None:
    """Say nothing: these are no results."""
