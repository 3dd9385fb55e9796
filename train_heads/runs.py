"""A run directory: configuration, weights, curves and evaluations.

``config.json``: the resolved configuration, the cache it was made for, and what the head was built for.
``metrics.jsonl``: one line per logged step. ``best.safetensors``, ``last.safetensors``: weights;
``step-NNNNNN.safetensors``: those kept during training. ``trainer.safetensors``: weights, optimiser and
position, for an exact resume. ``results.json``: how training ended and every evaluation.
``episodes-HASH.npz``: the episodes of an evaluation; ``eval-HASH.npz``: the predictions, [n, Q] per protocol,
and the facts of the evaluation.

Every file but the metrics carries a digest of its content (:mod:`clipspm.cache.checked`) and is refused if
they differ. ``results.json`` of a finished run records the digests of its weights and metrics. Each file is
replaced as a whole, so that a process may be killed at any moment.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

import clipspm
from clipspm.cache.checked import (
    Arrays,
    file_digest,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
    tensors_digest,
)
from clipspm.cache.disk import Unreadable, make_folder, reading, room_on, size_text
from clipspm.cache.lock import alone
from clipspm.errors import ClipspmError, UsageError, plain
from clipspm.train_heads.config import TrainConfig, from_dict
from clipspm.train_heads.heads.registry import build_head, head_entry
from clipspm.train_heads.places import known_runs, run_at

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clipspm.train_heads.heads.base import Head

#: held by the process that trains a run
_TRAINING = ".training.lock"
_WEIGHTS = ("best.safetensors", "last.safetensors")
CONFIG, RESULTS, METRICS, STATE = "config.json", "results.json", "metrics.jsonl", "trainer.safetensors"
#: the keys that the two JSON files may hold
IN_CONFIG = ("version", "config", "built_for", "cache")
IN_RESULTS = ("version", "selection", "training", "imported", "evaluations", "files", "dropped")
#: the largest feature width and number of frames per clip of a head
_MOST_WIDE, _MOST_FRAMES = 1 << 20, 1 << 12
#: an evaluation's name: the hash of its episodes, and a suffix if settings differ from the run's
_EVALUATION = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{8})?")
_SPLITS = ("train", "val", "test", "none")


@dataclass(frozen=True)
class HeadShape:
    """What a head is built for: feature width, frames per clip, widths of the other cached layers."""

    dim: int
    frames: int
    layer_dims: dict[str, int]

    @classmethod
    def of(cls, layer_dims: Mapping[str, int], frames: int) -> "HeadShape":
        """Return the shape for all cached layers, by their widths, and ``frames`` per clip."""
        dims = {layer: int(width) for layer, width in layer_dims.items()}
        return cls(dims.pop("final"), frames, dims)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "HeadShape":
        """Read the shape from ``config.json``; ValueError or TypeError if it is invalid."""
        shape = cls(**values)
        shape.layer_dims.items()
        for name, value, most in (
            ("dim", shape.dim, _MOST_WIDE),
            ("frames", shape.frames, _MOST_FRAMES),
            *(
                (f"the width of layer {layer}", width, _MOST_WIDE)
                for layer, width in shape.layer_dims.items()
            ),
        ):
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {most}")
        return shape

    def build(self, config: TrainConfig) -> "Head":
        """Build a head; :class:`UsageError` for settings it refuses, or weights that memory cannot hold."""
        self.plan(config)
        return self._build(config)

    def plan(self, config: TrainConfig) -> "Head":
        """Build the head without memory for its weights: their names, types and shapes."""
        import torch

        from clipspm.train_heads.episodes.bank import free_memory

        with torch.device("meta"):
            head = self._build(config)
        needed = sum(tensor.numel() * tensor.element_size() for tensor in head.state_dict().values())
        free = free_memory(torch.device("cpu"))
        if needed > free:
            raise UsageError(
                f"head {config.head}: its weights would take {size_text(needed)}, but only {size_text(free)} "
                "of memory is free: choose smaller widths"
            )
        return head

    def _build(self, config: TrainConfig) -> "Head":
        try:
            return build_head(
                config.head,
                dim=self.dim,
                frames=self.frames,
                config=config.head_config,
                layer_dims=self.layer_dims,
            )
        except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError, MemoryError) as error:
            said = "" if config.head in str(error) else f"head {config.head}: "
            raise UsageError(f"{said}{plain(error)[:400]}") from error


@dataclass(frozen=True)
class Run:
    """A run directory that holds a ``config.json``."""

    path: Path
    config: TrainConfig
    shape: HeadShape
    cache: dict[str, Any]

    @classmethod
    def create(
        cls, path: str | Path, config: TrainConfig, shape: HeadShape, made_for: Mapping[str, Any] | None
    ) -> "Run":
        """Start a run in a new directory; refuse one that holds a run already.

        ``made_for``: :meth:`Data.described`; None for imported weights, which belong to no cache, classes or
        splits.
        """
        path = Path(path)
        if holds_run(path):
            raise UsageError(
                f"{path} already holds a run: resume it with --resume, or name another --run-dir"
            )
        try:
            make_folder(path)
        except OSError as error:
            raise UsageError(f"cannot make the run directory {path}: {error.strerror}") from error
        cache = dict(made_for or {"path": None, "class_splits": {}})
        save_json(
            path / CONFIG,
            {
                "version": clipspm.__version__,
                "config": config.as_dict(),
                "built_for": asdict(shape),
                "cache": cache,
            },
        )
        return cls(path, config, shape, cache)

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Read a run directory; ``path`` may also be a name under the home's ``runs/``."""
        path = run_at(path)
        if not path.exists():
            raise UsageError(f"there is no run {path}; {known_runs()}")
        file = path / CONFIG
        if not os.path.lexists(file):
            raise UsageError(f"{path} is not a run directory: it holds no {CONFIG}")
        content, _ = load_json(
            file,
            IN_CONFIG,
            problem="is not a run's configuration",
            advice="put it back as it was, or train a new run with its settings, "
            f"clipspm train-heads --config {shlex.quote(str(file))}",
        )
        with reading(file, "is not a run's configuration"):
            shape = HeadShape.read(content["built_for"])
            settings = {"hold_out": False, **content["config"]}  # before 0.3 nothing was held out
            return cls(path, from_dict(settings), shape, _made_for(content["cache"]))

    # weights

    def save_weights(self, which: str, head: "Head", **facts: Any) -> None:
        """Write the weights of ``head`` as ``best``, ``last`` or one of :meth:`checkpoints`.

        ``facts`` go into the file's metadata.
        """
        tensors = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}
        save_tensors(self.path / f"{which}.safetensors", tensors, {"head": self.config.head, **facts})

    def which_weights(self) -> str:
        """Return ``best`` if the run has or should have it, else ``last``; ClipspmError if it has neither."""
        results = self.results()
        should = set(results.get("files", ())) - set(results.get("dropped", ()))
        there = {name for name in _WEIGHTS if os.path.lexists(self.path / name)}
        for name in _WEIGHTS if there else ():
            if name in should | there:
                return name.removesuffix(".safetensors")
        raise ClipspmError(f"{self.path} holds no weights yet: finish it with train-heads --resume")

    def checkpoints(self) -> list[str]:
        """Return the names of weights kept during training (``train-heads --keep-checkpoints``), in order."""
        return sorted(file.stem for file in self.path.glob("step-*.safetensors"))

    def trains(self) -> bool:
        """Return whether the head has anything to train; if not, the seed of the run changes nothing."""
        if not head_entry(self.config.head).trained:
            return False
        facts = self.results().get("training", {})
        stepped = (
            facts.get("steps") != 0 or self.config.episodes == 0
        )  # runs of 0.2 do not record ``trainable``
        return bool(facts.get("trainable", stepped))

    def build_head(self) -> "Head":
        """Build a head with the settings of this run, without its weights."""
        with reading(self.path / CONFIG, "asks for a head that cannot be built"):
            return self.shape.build(self.config)

    def load_head(self, which: str | None = None, device: "torch.device | str" = "cpu") -> "Head":
        """Load the trained head, in evaluation mode."""
        head = self.build_head()
        self.load_weights(head, which)
        return head.to(device).eval()

    def load_weights(self, head: "Head", which: str | None = None) -> dict[str, Any]:
        """Load weights into ``head``; return the facts saved with them, and ``sha256``.

        Raises :class:`Unreadable` for a file that is damaged, or not the one that training ended with.
        """
        file = self.path / f"{which or self.which_weights()}.safetensors"
        arrays, facts, digest = load_tensors(file)
        kept = self.results().get("files", {}).get(file.name, digest)
        if digest != kept:
            raise Unreadable(
                file,
                f"{file} is not the one that training ended with: `clipspm doctor {self.path}` says more",
            )
        with reading(file, "does not fit the head"):
            copy_into(head, arrays)
        return {**facts, "sha256": digest}

    # trainer state

    def save_state(
        self, head: "Head", optimizer: "torch.optim.Optimizer | None", facts: Mapping[str, Any]
    ) -> None:
        """Write everything an exact resume needs into one file."""
        import torch

        tensors = {f"head.{name}": value.detach().cpu().clone() for name, value in head.state_dict().items()}
        slots = optimizer.state_dict()["state"] if optimizer is not None else {}
        for index, slot in slots.items():
            for name, value in slot.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
        save_tensors(self.path / STATE, tensors, facts)

    def load_state(self, head: "Head", optimizer: "torch.optim.Optimizer | None") -> dict[str, Any] | None:
        """Restore what :meth:`save_state` wrote and return its facts; None if nothing was written yet."""
        import torch

        file = self.path / STATE
        if not os.path.lexists(file):
            return None
        arrays, facts, _ = load_tensors(file)
        with reading(file, "does not fit the head"):
            weights: Arrays = {}
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in arrays.items():
                part, name = key.split(".", 1)
                if part == "head":
                    weights[name] = value
                else:
                    index, slot = name.split(".", 1)
                    slots.setdefault(int(index), {})[slot] = torch.tensor(value)
            copy_into(head, weights)
            if optimizer is not None:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                for number, slot_values in slots.items():
                    for name, kept in slot_values.items():
                        _check_slot(f"optimizer.{number}.{name}", kept, parameters[number])
                optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
        return facts

    def drop_state(self) -> None:
        """Delete the trainer state of a finished run that will not be resumed."""
        (self.path / STATE).unlink(missing_ok=True)

    # results

    def results(self) -> dict[str, Any]:
        """Return the content of ``results.json``, empty if there is none yet."""
        file = self.path / RESULTS
        if not os.path.lexists(file):
            return {}
        again = f"`clipspm doctor {shlex.quote(str(self.path))}` says what to do"
        content, _ = load_json(file, IN_RESULTS, advice=again)
        with reading(file, "is damaged"):
            check_results(content)
        return content

    def end(self, **parts: Any) -> None:
        """Set parts of ``results.json``, and record the digests of the final weights and metrics."""
        self.update_results(**parts, files=self.digests(), dropped=[])

    def digests(self) -> dict[str, str]:
        """Return the digests of the weights and metrics that exist, by file name."""
        found = {}
        for which in ("best", "last", *self.checkpoints()):
            file = self.path / f"{which}.safetensors"
            if file.is_file() and (digest := tensors_digest(file)):
                found[file.name] = digest
        if (self.path / METRICS).is_file():
            found[METRICS] = file_digest(self.path / METRICS)
        return found

    def drop(self, *which: str) -> None:
        """Delete weights for good, and record that in ``results.json``."""
        names = [f"{name}.safetensors" for name in which]
        with self.editing() as content:
            content["dropped"] = sorted({*content.get("dropped", ()), *names})
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def editing(self) -> Iterator[dict[str, Any]]:
        """Yield the content of ``results.json`` and write it back on exit; one process at a time."""
        with room_on(self.path / RESULTS), FileLock(str(self.path / ".results.lock")):
            content = self.results()
            yield content
            save_json(self.path / RESULTS, content)

    def update_results(self, **parts: Any) -> None:
        """Set top-level parts of ``results.json``."""
        with self.editing() as content:
            content.update(parts)

    @property
    def finished(self) -> bool:
        """Whether training ended."""
        return "training" in self.results()

    def changed(self) -> float:
        """Return when the run was last written to, in seconds since the epoch."""
        return max(
            (self.path / name).stat().st_mtime for name in (CONFIG, STATE) if (self.path / name).exists()
        )

    def busy(self) -> bool:
        """Return whether a process is training this run now."""
        try:
            with FileLock(str(self.path / _TRAINING), timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a folder that cannot be written to: nobody trains in it
            return False

    @property
    def imported(self) -> bool:
        """Whether the weights were trained elsewhere, on no cache known here."""
        return self.cache["path"] is None


def holds_run(path: Path) -> bool:
    """Return whether the directory holds weights or results already."""
    return any((path / name).exists() for name in (STATE, RESULTS, *_WEIGHTS))


@contextmanager
def training_lock(path: Path) -> Iterator[None]:
    """Lock the run directory ``path``, made if missing, for training; refuse if another process has it."""
    try:
        make_folder(path)
    except OSError as error:
        raise UsageError(f"cannot make the run directory {path}: {plain(error)}") from error
    doing, holder = f"{path} is being trained", path / ".training.json"
    with alone(path / _TRAINING, holder, doing, ", or name another --run-dir"):
        yield


def _made_for(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the part of ``config.json`` about the cache; ValueError or KeyError if it is invalid."""
    found, splits = dict(values), dict(values["class_splits"])
    if any(split not in _SPLITS for split in splits.values()):
        raise ValueError("its class_splits name an unknown split")
    if found["path"] is not None:
        for name in ("path", "fingerprint", "content", "dataset"):
            if not isinstance(found[name], str) or "\0" in found[name]:
                raise ValueError(f"{name} of its cache is {found[name]!r:.80}, not text")
    return {**found, "class_splits": splits}


def check_results(content: Mapping[str, Any]) -> None:
    """Raise ValueError if the content of ``results.json`` is invalid."""
    kinds = {"training": dict, "evaluations": dict, "files": dict, "dropped": list, "selection": str}
    for name, kind in kinds.items():
        if not isinstance(content.get(name, kind()), kind):
            raise ValueError(f"its {name} is {content[name]!r:.80}, not a {kind.__name__}")
    for name, facts in content.get("evaluations", {}).items():
        if not _EVALUATION.fullmatch(name) or not isinstance(facts, dict):
            raise ValueError(f"its evaluation {name!r:.80} is invalid")
    named = content.get("training", {}).get("val_episodes", {})
    if not isinstance(named, dict) or not isinstance(named.get("hash", ""), str):
        raise ValueError("its training has invalid val_episodes")


def copy_into(head: "Head", arrays: Arrays) -> None:
    """Copy ``arrays`` into ``head``; ValueError for other names, types or shapes, or values not finite."""
    import torch

    state, found = head.state_dict(), {}
    if strange := sorted(state.keys() ^ arrays.keys()):
        has = "lacks" if strange[0] in state else "holds"
        raise ValueError(f"it {has} {strange[0]} ({len(strange)} names differ)")
    for name, tensor in state.items():
        found[name] = value = torch.tensor(arrays[name])
        if (value.dtype, value.shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"its {name} is {_kind(value)}, the head's is {_kind(tensor)}")
        if not torch.isfinite(value).all():
            raise ValueError(f"its {name} holds values that are not finite")
    head.load_state_dict(found)


def _check_slot(name: str, value: "Tensor", parameter: "Tensor") -> None:
    """Raise ValueError unless ``value`` is a finite number, or one for each of ``parameter``."""
    whole = value.shape == parameter.shape or not value.dim()
    if not whole or not value.is_floating_point() or not value.isfinite().all():
        raise ValueError(f"its {name} is {_kind(value)}, the parameter is {_kind(parameter)}")


def _kind(tensor: "Tensor") -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
