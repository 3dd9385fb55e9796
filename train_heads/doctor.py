"""Check every file of a run directory, and say what to do about damaged and missing ones."""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipspm.cache.checked import file_digest, load_arrays, load_json, load_tensors
from clipspm.cache.disk import Unreadable, reading
from clipspm.errors import ClipspmError, UsageError
from clipspm.tables import Table
from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.evaluation.result import load_predictions
from clipspm.train_heads.heads.registry import HeadMissing
from clipspm.train_heads.places import known_runs, run_at
from clipspm.train_heads.runs import (
    CONFIG,
    IN_CONFIG,
    IN_RESULTS,
    METRICS,
    RESULTS,
    STATE,
    Run,
    check_results,
    copy_into,
)

if TYPE_CHECKING:
    from clipspm.train_heads.heads.base import Head

#: ``no digest``: readable, but written by an earlier version. ``unknown``: not part of a run
State = Literal["whole", "no digest", "damaged", "missing", "unknown"]

_LOCKS = {".training.lock", ".training.json", ".results.lock"}
_ASIDE = re.compile(r"\..*\.[0-9a-f]{8}\.new")
_ENCODER = "encoder.safetensors"


@dataclass(frozen=True)
class Finding:
    """One file of a run, its state and a remark (empty for most whole files)."""

    name: str
    state: State
    said: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The files of a run, and lines that say what to do next."""

    run: Path
    files: tuple[Finding, ...]
    advice: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not any(file.state in ("damaged", "missing") for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for ``--json``."""
        files = [asdict(file) for file in self.files]
        return {"run": str(self.run), "ok": self.ok, "files": files, "next": list(self.advice)}

    def table(self) -> Table:
        """Return a row per file."""
        counts = Counter(file.state for file in self.files)
        total = ", ".join(f"{count} {state}" for state, count in counts.items())
        rows = [(file.name, file.state, file.said) for file in self.files]
        notes = [total, *(f"next: {line}" for line in self.advice)]
        return Table(
            ("file", "state", "what is wrong"), rows, str(self.run), notes, text=("state", "what is wrong")
        )


def examine(path: str | Path) -> Diagnosis:
    """Check every file of the run ``path`` (a directory, or a name under the home's ``runs/``).

    Raises :class:`UsageError` if there is no run directory.
    """
    return _Examination(run_to_examine(path)).diagnosis()


def run_to_examine(path: str | Path) -> Path:
    """Return the run directory ``path``, or of that name under the home; :class:`UsageError` if none."""
    path = run_at(path)
    if not path.exists():
        raise UsageError(f"there is no run {path}; {known_runs()}")
    if not path.is_dir() or not any(os.path.lexists(path / name) for name in (CONFIG, RESULTS, STATE)):
        raise UsageError(f"{path} is not a run directory: it holds no {CONFIG}")
    return path


class _Examination:
    """Checks the files of one run, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Finding] = {}
        self.run: Run | None = None
        self.head: Head | None = None
        self.results: dict[str, Any] = {}
        self.remark = ""

    def diagnosis(self) -> Diagnosis:
        self._record(CONFIG, self._config)
        if os.path.lexists(self.path / RESULTS):
            self._record(RESULTS, self._results)
        recorded = self.results.get("files", {})
        for name in sorted(os.listdir(self.path)):
            if name not in self.found and name not in _LOCKS and (check := self._checker(name)):
                self._record(name, check, recorded.get(name))
        for name, why in self._expected():
            if name not in self.found:
                self.found[name] = Finding(name, "missing", why)
        for name in sorted(os.listdir(self.path)):
            if name not in self.found and name not in _LOCKS:
                self.found[name] = Finding(name, "unknown", _about_unknown(name))
        order = {CONFIG: 0, RESULTS: 1}
        files = sorted(self.found.values(), key=lambda file: (order.get(file.name, 2), file.name))
        return Diagnosis(self.path, tuple(files), tuple(dict.fromkeys(self._advice())))

    def _record(self, name: str, check: Callable[[str], str | None], recorded: str | None = None) -> None:
        """Record the state of a file. ``check`` reads it and returns the digest that it carries."""
        try:
            digest = check(name)
        except ClipspmError as error:
            if name == CONFIG and (missing := _missing_head(error)):
                self.found[name] = Finding(name, "whole", missing)
                return
            state: State = "damaged" if os.path.lexists(self.path / name) else "missing"
            self.found[name] = Finding(name, state, _without_name(error, self.path / name))
            return
        if recorded is not None and digest != recorded:
            self.found[name] = Finding(name, "damaged", "is not the one that training ended with")
        elif digest is None:
            self.found[name] = Finding(name, "no digest", "written by an earlier version")
        else:
            self.found[name] = Finding(name, "whole", self._remark(name))

    def _checker(self, name: str) -> Callable[[str], str | None] | None:
        if name == METRICS:
            return self._metrics
        if name.endswith(".safetensors") and re.fullmatch(
            r"best|last|trainer|encoder|step-\d{6,}", name[:-12]
        ):
            return self._tensors
        if re.fullmatch(r"episodes-[0-9a-f]{16}\.npz", name):
            return self._episodes
        if re.fullmatch(r"eval-[0-9a-f]{16}(-[0-9a-f]{8})?\.npz", name):
            return self._evaluation
        return None

    def _config(self, name: str) -> str | None:
        self.run = Run.open(self.path)
        if ":" in self.run.config.head:  # code of others is not run to look at files
            self.remark = f"its head {self.run.config.head} was not built, so its weights are not compared"
        else:
            self.head = self.run.build_head()
        return load_json(self.path / name, IN_CONFIG)[1]

    def _tensors(self, name: str) -> str | None:
        """Load the tensors into a head that is built as the configuration says."""
        arrays, _, digest = load_tensors(self.path / name)
        if self.run is None or self.head is None or name == _ENCODER:
            return digest
        if name != STATE:
            with reading(self.path / name, "does not fit the head"):
                copy_into(self.head, arrays)
            return digest
        from clipspm.train_heads.training.loop import read_progress
        from clipspm.train_heads.training.optim import make_optimizer

        parameters = [p for p in self.head.parameters() if p.requires_grad]
        optimizer = make_optimizer(parameters, self.run.config) if parameters else None
        with reading(self.path / name, "is not a valid checkpoint"):
            read_progress(self.run.load_state(self.head, optimizer) or {})
        return digest

    def _results(self, name: str) -> str | None:
        content, digest = load_json(self.path / name, IN_RESULTS)
        with reading(self.path / name, "is damaged"):
            check_results(content)
        self.results = content
        return digest

    def _metrics(self, name: str) -> str | None:
        """Return the digest. Lines are added until training ends; ``results.json`` then records it."""
        digest = file_digest(self.path / name)
        return digest if METRICS in self.results.get("files", {}) or not self._ended else None

    def _episodes(self, name: str) -> str:
        episodes = Episodes.load(self.path / name)
        if episodes.hash not in name:
            raise Unreadable(self.path / name, f"holds other episodes ({episodes.hash}) than its name says")
        return episodes.full_hash

    def _evaluation(self, name: str) -> str | None:
        _, digest = load_arrays(self.path / name)
        label = name.removeprefix("eval-").removesuffix(".npz")
        file = self.path / f"episodes-{label[:16]}.npz"
        if self.run is not None and file.is_file():
            try:
                episodes = Episodes.load(file)
            except ClipspmError:  # reported for that file
                return digest
            load_predictions(self.run, label, episodes)
        return digest

    @property
    def _ended(self) -> bool:
        return "training" in self.results or "imported" in self.results

    def _remark(self, name: str) -> str:
        if name == METRICS and not self._ended:
            return "lines are added until training ends: not checked yet"
        if name == CONFIG:
            return self.remark
        if name.startswith("eval-") and name[5:-4] not in self.results.get("evaluations", {}):
            return f"{RESULTS} does not name it: the evaluation was cut short"
        return ""

    def _expected(self) -> Iterator[tuple[str, str]]:
        """Yield the files that the run should hold, and why."""
        if self.run is None and CONFIG not in self.found:
            yield CONFIG, "the configuration"
        dropped = self.results.get("dropped", ())
        for name in self.results.get("files", {}):
            if name not in dropped:
                yield name, "it was there when training ended"
        selected = self.results.get("training", {}).get("val_episodes", {}).get("hash")
        if selected:
            yield f"episodes-{selected}.npz", "the weights were chosen on them"
        for evaluation in self.results.get("evaluations", {}):
            yield f"eval-{evaluation}.npz", "an evaluation's predictions"
            yield f"episodes-{evaluation[:16]}.npz", "an evaluation's episodes"

    def _advice(self) -> Iterator[str]:
        """Yield what to do about the findings, in the order in which to do it."""
        bad = {name for name, file in self.found.items() if file.state in ("damaged", "missing")}
        here, config = shlex.quote(str(self.path)), shlex.quote(str(self.path / CONFIG))
        resume = f"clipspm train-heads --resume --run-dir {here}"
        ends = [RESULTS, STATE, *(n for n in self.found if n.endswith(".safetensors") and n != STATE)]
        there = " ".join(name for name in ends if os.path.lexists(self.path / name))
        again = f"remove {there} and train again with the same cache and splits: {resume}"
        weights = {name for name in bad if name.endswith(".safetensors") and name not in (STATE, _ENCODER)}
        if CONFIG in bad:
            yield f"put {CONFIG} back as it was, or train a new run: clipspm train-heads --config {config}"
        elif self.run is not None and self.run.imported and (weights or bad & {RESULTS, _ENCODER}):
            yield "import the checkpoint again into another folder: clipspm import-checkpoint FILE --out NEW"
        elif weights:
            yield again
        elif RESULTS in bad and self._state_is_whole():
            yield f"remove {RESULTS}, write it again ({resume}) and score again (clipspm eval {here})"
        elif RESULTS in bad:
            yield again
        elif not self._ended:
            first = f"remove {STATE} and begin again" if STATE in bad else "training has not ended, go on"
            yield f"{first}: {resume}"
        elif STATE in bad:
            yield f"remove {STATE}: a run that has ended does not need it"
        for name, facts in self.results.get("evaluations", {}).items():
            if {f"eval-{name}.npz", f"episodes-{name[:16]}.npz"} & bad:
                yield f"score those episodes again: clipspm eval {here}{_eval_options(facts)}"
        if METRICS in bad:
            yield f"no command reads {METRICS}: leave it as it is, or {again}"
        if any(_ASIDE.fullmatch(name) for name in self.found):
            yield "remove the files ending in .new, left from killed processes, if no process is at work"

    def _state_is_whole(self) -> bool:
        return STATE in self.found and self.found[STATE].state in ("whole", "no digest")


def _eval_options(facts: Mapping[str, Any]) -> str:
    """Return the options of ``eval`` that draw the episodes of an evaluation."""
    options = {
        "test-episodes": "episodes",
        "way": "way",
        "shots": "shots",
        "queries": "queries",
        "seed": "seed",
    }
    said = [f" --{option} {facts[key]}" for option, key in options.items() if type(facts.get(key)) is int]
    if facts.get("dirichlet"):
        said.append(" --unbalanced")
    if isinstance(sources := facts.get("sources"), str) and sources:
        said.append(
            " --source-disjoint" if sources == "name" else f" --source-pattern {shlex.quote(sources)}"
        )
    return "".join(said)


def _about_unknown(name: str) -> str:
    if _ASIDE.fullmatch(name):
        return "left from a process that was killed, or being written now"
    return "event files, which are not checked" if name == "tensorboard" else "not part of a run"


def _without_name(error: ClipspmError, file: Path) -> str:
    """Return the message of ``error`` without the name of ``file``."""
    said = (
        str(error).removeprefix(f"cannot read {file}: ").removeprefix(f"{file} ").removeprefix("is damaged: ")
    )
    return json.dumps(said)[1:-1].replace('\\"', '"')


def _missing_head(error: BaseException | None) -> str:
    """Return what is said of a head that is not installed here, if that is the cause of ``error``."""
    while error is not None:
        if isinstance(error, HeadMissing):
            return str(error)
        error = error.__cause__
    return ""
