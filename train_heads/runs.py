"""A run directory: what was asked, what was learnt, what was measured.

``config.json``: the resolved configuration, the cache it was made for, and what the head was built for.
``metrics.jsonl``: one line per logged step. ``best.safetensors``, ``last.safetensors``: weights;
``step-NNNNNN.safetensors``: those kept on the way.
``trainer.safetensors``: weights, optimiser and position, for an exact resume. ``results.json``: how
training ended and every evaluation. ``episodes-HASH.npz``: the episodes of an evaluation;
``eval-HASH.npz``: what was predicted in them, [n, Q] per protocol.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

import clipspm
from clipspm.cache.disk import replacing, write_json
from clipspm.cache.home import runs_dir
from clipspm.cache.reader import open_cache
from clipspm.errors import ClipspmError, UsageError, plain
from clipspm.train_heads.config import TrainConfig, from_dict
from clipspm.train_heads.episodes.pool import FeatureSource, Split, content_digest
from clipspm.train_heads.heads.registry import HEADS, build_head

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clipspm.train_heads.heads.base import Head

#: held by the process that trains a run
_TRAINING = ".training.lock"
_WEIGHTS = ("best.safetensors", "last.safetensors")


@dataclass(frozen=True)
class HeadShape:
    """What a head is built for: feature width, frames per clip, widths of the other cached layers."""

    dim: int
    frames: int
    layer_dims: dict[str, int]

    @classmethod
    def of(cls, cache: FeatureSource, frames: int) -> "HeadShape":
        """The widths of ``cache``."""
        dims = {layer: int(width) for layer, width in cache.spec.dims.items()}
        return cls(dims.pop("final"), frames, dims)

    def build(self, config: TrainConfig) -> "Head":
        """A new head; settings it refuses are a :class:`UsageError`."""
        try:
            return build_head(
                config.head,
                dim=self.dim,
                frames=self.frames,
                config=config.head_config,
                layer_dims=self.layer_dims,
            )
        except (ValueError, TypeError, KeyError) as error:
            said = "" if f" of {config.head}" in str(error) else f"head {config.head}: "
            raise UsageError(f"{said}{error}") from error


@dataclass(frozen=True)
class Run:
    """A run directory that holds a ``config.json``."""

    path: Path
    config: TrainConfig
    shape: HeadShape
    cache: dict[str, Any]

    @classmethod
    def create(
        cls, path: str | Path, config: TrainConfig, shape: HeadShape, cache: FeatureSource | None
    ) -> "Run":
        """Start a run in a new directory; one that holds results of training already is refused.

        ``cache`` None: weights from elsewhere, so that no cache, classes or splits belong to the run.
        """
        path = Path(path)
        if holds_run(path):
            raise UsageError(
                f"{path} already holds a run: resume it with --resume, or name another --run-dir"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the run directory {path}: {error.strerror}") from error
        made_for: dict[str, Any] = {"path": None, "class_splits": {}}
        if cache is not None:
            made_for = {
                "path": str(Path(cache.path).resolve()),
                "fingerprint": cache.spec.fingerprint,
                "content": content_digest(cache),
                "dataset": cache.spec.dataset,
                "class_splits": dict(cache.class_splits),
            }
        write_json(
            path / "config.json",
            {
                "version": clipspm.__version__,
                "config": config.as_dict(),
                "built_for": asdict(shape),
                "cache": made_for,
            },
        )
        return cls(path, config, shape, made_for)

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Read a run directory; ``path`` may also be a name under the home's ``runs/``."""
        path = run_at(path)
        if not path.exists():
            raise UsageError(f"there is no run {path}; {_known_runs()}")
        file = path / "config.json"
        if not file.is_file():
            raise UsageError(f"{path} is not a run directory: it holds no config.json")
        try:
            content = json.loads(file.read_text("utf-8"))
            shape = HeadShape(**content["built_for"])
            content["config"].setdefault("hold_out", False)  # before 0.3 nothing was held out
            return cls(path, from_dict(content["config"]), shape, dict(content["cache"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClipspmError(f"{file} is not a run's configuration: {error}") from error

    # weights

    def save_weights(self, which: str, head: "Head", **facts: Any) -> None:
        """Write the weights of ``head`` as ``best``, ``last`` or one of :meth:`checkpoints`.

        ``facts`` go into the file's metadata.
        """
        tensors = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}
        _save(self.path / f"{which}.safetensors", tensors, {"head": self.config.head, **facts})

    def which_weights(self) -> str:
        """``best`` where there is one, else ``last``; neither is an error that says what to do."""
        for which in ("best", "last"):
            if (self.path / f"{which}.safetensors").is_file():
                return which
        raise ClipspmError(f"{self.path} holds no weights yet: finish it with train-heads --resume")

    def checkpoints(self) -> list[str]:
        """The weights that were kept on the way (``train-heads --keep-checkpoints``), in order."""
        return sorted(file.stem for file in self.path.glob("step-*.safetensors"))

    def trains(self) -> bool:
        """Whether the head has anything to train; if not, the seed of the run changes nothing."""
        if not HEADS[self.config.head].trained:
            return False
        facts = self.results().get("training", {})
        stepped = facts.get("steps") != 0 or self.config.episodes == 0  # runs of 0.2 say no more
        return bool(facts.get("trainable", stepped))

    def load_head(self, which: str | None = None, device: "torch.device | str" = "cpu") -> "Head":
        """The trained head in evaluation mode."""
        head = self.shape.build(self.config)
        self.load_weights(head, which)
        return head.to(device).eval()

    def load_weights(self, head: "Head", which: str | None = None) -> dict[str, Any]:
        """Load weights into ``head``; returns the facts saved with them."""
        file = self.path / f"{which or self.which_weights()}.safetensors"
        tensors, facts = _load(file)
        try:
            head.load_state_dict(tensors)
        except RuntimeError as error:
            raise ClipspmError(f"{file} does not fit the head: {' '.join(str(error).split())}") from error
        return facts

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
        _save(self.path / "trainer.safetensors", tensors, dict(facts))

    def load_state(self, head: "Head", optimizer: "torch.optim.Optimizer | None") -> dict[str, Any] | None:
        """Restore what :meth:`save_state` wrote; None if nothing was written yet."""
        file = self.path / "trainer.safetensors"
        if not file.is_file():
            return None
        tensors, facts = _load(file)
        slots: dict[int, dict[str, Tensor]] = {}
        weights = {}
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            if part == "head":
                weights[name] = value
            else:
                index, slot = name.split(".", 1)
                slots.setdefault(int(index), {})[slot] = value
        head.load_state_dict(weights)
        if optimizer is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
        return facts

    def drop_state(self) -> None:
        """Delete the trainer state (a finished run that will not be resumed)."""
        (self.path / "trainer.safetensors").unlink(missing_ok=True)

    # results

    def results(self) -> dict[str, Any]:
        """The content of ``results.json``, or nothing yet."""
        file = self.path / "results.json"
        if not file.is_file():
            return {}
        try:
            content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ClipspmError(f"{file} is damaged: {error}") from error
        return content

    @contextmanager
    def editing(self) -> Iterator[dict[str, Any]]:
        """The content of ``results.json``, written back when the block ends; one process at a time."""
        with FileLock(str(self.path / ".results.lock")):
            content = self.results()
            yield content
            write_json(self.path / "results.json", content)

    def update_results(self, **parts: Any) -> None:
        """Set top-level parts of ``results.json``."""
        with self.editing() as content:
            content.update(parts)

    @property
    def finished(self) -> bool:
        """Whether training ended."""
        return "training" in self.results()

    def changed(self) -> float:
        """When it was written to last, in seconds since the epoch."""
        return max(
            (self.path / name).stat().st_mtime
            for name in ("config.json", "trainer.safetensors")
            if (self.path / name).exists()
        )

    def busy(self) -> bool:
        """Whether a process is training this run now."""
        try:
            with FileLock(str(self.path / _TRAINING), timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a folder that cannot be written to: nobody trains in it
            return False

    @property
    def imported(self) -> bool:
        """Whether the weights come from elsewhere: there is no cache they were trained on here."""
        return self.cache["path"] is None


def run_at(place: str | Path) -> Path:
    """The directory ``place``, or the run of that name under the home."""
    path = Path(place)
    named = runs_dir() / path
    return named if not path.exists() and not path.is_absolute() and named.is_dir() else path


def holds_run(path: Path) -> bool:
    """Whether the directory holds weights or results already."""
    return any((path / name).exists() for name in ("trainer.safetensors", "results.json", *_WEIGHTS))


def _known_runs() -> str:
    """The newest runs under the home's ``runs/`` by name, for a message."""
    found = sorted(runs_dir().glob("*/config.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    names = [file.parent.name for file in found]
    if not names:
        return f"none at {runs_dir()} either: `clipspm train-heads` makes one"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"at {runs_dir()}: {', '.join(names[:5])}{more}"


def cache_title(cache: FeatureSource) -> str:
    """What to call files made of a cache: its own name, without suffix and fingerprint.

    The data set stands before it where the name does not tell it, unless it is merely some folder or list.
    """
    stem = re.sub(r"-[0-9a-f]{8}$", "", Path(cache.path).stem)
    title = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.")
    dataset = cache.spec.dataset
    if not title or not (dataset in title or dataset in ("folder", "manifest")):
        return f"{dataset}-{title}".rstrip("-")
    return title


@contextmanager
def one_training(path: Path) -> Iterator[None]:
    """Be the one process that trains in the run directory ``path`` (made here); a second is refused."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the run directory {path}: {plain(error)}") from error
    try:
        with FileLock(str(path / _TRAINING), timeout=0):
            yield
    except Timeout:
        raise UsageError(f"another process is training in {path}: name another --run-dir") from None


def default_run_dir(config: TrainConfig, cache: FeatureSource) -> Path:
    """A new directory under the home's ``runs/``, made and named after the cache and the request."""
    name = (
        f"{cache_title(cache)}-{config.head}-{config.way}w{config.shots}s-{config.recipe}-seed{config.seed}"
    )
    for count in range(1, 10_000):
        path = runs_dir() / (name if count == 1 else f"{name}-{count}")
        try:
            path.mkdir(parents=True)  # taken: another process that asks now gets another one
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"cannot make {path} ({plain(error)}): set CLIPSPM_HOME to another folder"
            ) from error
        return path
    raise ClipspmError(f"too many runs named {name} under {runs_dir()}: remove some or name a --run-dir")


def as_trained(
    run: Run,
    path: str | Path | None = None,
    splits: Sequence[Split] = ("test",),
    *,
    allow_partial: bool = False,
) -> FeatureSource:
    """The cache of ``run`` (or the one at ``path``), under the class splits that it was trained with.

    A cache of other classes keeps its own splits, and so does every cache where ``run`` was imported. One
    whose ``splits`` are not complete is refused unless ``allow_partial``.
    """
    if run.imported and path is None:
        raise UsageError(f"{run.path} was imported and has no cache of its own: give one with --cache PATH")
    try:
        cache = open_cache(path or run.cache["path"])
    except ClipspmError as error:
        if path is not None:
            raise
        raise ClipspmError(f"{run.path} needs its cache (or another with --cache): {error}") from error
    own = run.cache["class_splits"]
    other = cache.class_splits == own or set(cache.class_names) != set(own)
    return (cache if other else cache.with_splits(own)).require(splits, allow_partial=allow_partial)


def unfinished_run(config: TrainConfig, cache: FeatureSource) -> Path:
    """The newest run under the home that was begun with these settings on this cache and has not ended.

    ``config`` as it is fitted to the cache. Raises :class:`UsageError` that says what is there instead.
    """
    same, ended, others = [], [], []
    for folder in sorted(runs_dir().iterdir()) if runs_dir().is_dir() else []:
        try:
            run = Run.open(folder)
            here = (cache.spec.fingerprint, content_digest(cache))
            if run.imported or (run.cache["fingerprint"], run.cache["content"]) != here or run.busy():
                continue
            if run.config.identity != config.identity:
                others += [] if run.finished else [run]
            elif run.finished:
                ended.append(run)
            else:
                same.append(run)
        except ClipspmError:
            continue
    if same:
        return max(same, key=Run.changed).path
    if ended:
        newest = max(ended, key=Run.changed).path
        raise UsageError(f"nothing to resume: {newest} has these settings and is finished")
    if others:
        newest_other = max(others, key=Run.changed)
        differs = "; ".join(newest_other.config.differences(config))
        raise UsageError(
            f"no unfinished run has these settings; {newest_other.path} is unfinished and differs (there / "
            f"here): {differs}. To go on with it: --resume --run-dir {newest_other.path}"
        )
    raise UsageError(f"nothing to resume: no run on this cache under {runs_dir()}; leave --resume out")


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays to a compressed ``.npz`` (no pickle), atomically."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]


def _save(path: Path, tensors: "dict[str, Tensor]", facts: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(tensors, temporary, {"facts": json.dumps(facts)})


def _load(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise ClipspmError(f"cannot read {path}: {error}") from error
    return tensors, facts
