"""Open a finished or growing cache and read what it holds."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from clipspm.cache.errors import ClipspmError
from clipspm.cache.home import caches_dir
from clipspm.cache.spec import CacheSpec, Split, VideoRecord
from clipspm.cache.store import CLASSES, SPEC, TEXT, Store, find_store, layer_key


@dataclass(frozen=True)
class Cache:
    """Cached features of one data set.

    ``spec``: what the numbers depend on. ``videos``: every planned video, in row order.
    ``class_names``: the classes in the order of the rows of :meth:`text`. ``class_splits``: each class's
    split (``train``, ``val``, ``test``, or ``none`` where no split is known).
    """

    path: Path
    spec: CacheSpec
    videos: tuple[VideoRecord, ...]
    class_names: tuple[str, ...]
    class_splits: dict[str, Split]
    store: Store = field(repr=False)
    _features: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def good(self) -> tuple[VideoRecord, ...]:
        """The videos that were read, aligned with the rows of :meth:`features`."""
        return tuple(v for v in self.videos if v.status == "ok")

    def features(self, layer: str = "final") -> np.ndarray:
        """Features of the good videos, [number of good videos, V, T, D], read once and then kept."""
        if layer not in self.spec.layers:
            raise ClipspmError(f"{self.path} has no layer {layer!r}; it has {', '.join(self.spec.layers)}")
        if layer not in self._features:
            rows = np.array([v.status == "ok" for v in self.videos], bool)
            whole = self._read(layer_key(layer))
            if len(whole) != len(rows):
                raise ClipspmError(f"{self.path}: layer {layer} has {len(whole)} rows for {len(rows)} videos")
            self._features[layer] = whole if rows.all() else whole[rows]
        return self._features[layer]

    def text(self, *, templates: bool = False) -> np.ndarray:
        """Class-name features, float32 [C, D]: the plain mean over the templates.

        With ``templates=True``, each template's own, [C, P, D].
        """
        each = self._read(TEXT)
        return each if templates else each.mean(axis=1, dtype=np.float32)

    def _read(self, key: str) -> np.ndarray:
        try:
            return self.store.array(key)
        except (KeyError, OSError, ValueError) as error:
            raise ClipspmError(f"cannot read {key} of {self.path}: {_one_line(error)}") from error

    def with_splits(self, class_splits: Mapping[str, Split]) -> "Cache":
        """The same features under another class split; classes not named take no part."""
        unknown = sorted(set(class_splits) - set(self.class_names))
        if unknown:
            raise ClipspmError(
                f"class {unknown[0]!r} of the splits is not in {self.path}; it has, for example, "
                f"{', '.join(self.class_names[:5])}"
            )
        splits: dict[str, Split] = {c: class_splits.get(c, "none") for c in self.class_names}
        videos = tuple(replace(v, split=splits[v.class_name]) for v in self.videos)
        return replace(self, videos=videos, class_splits=splits)

    def summary(self) -> dict[str, Any]:
        """What ``clipspm cache info`` prints, in plain JSON types."""
        spec = self.spec
        splits = {}
        for split in ("train", "val", "test", "none"):
            names = [c for c, s in self.class_splits.items() if s == split]
            if names:
                kept = sum(v.split == split for v in self.good)
                splits[split] = {"classes": len(names), "videos": kept}
        return {
            "path": str(self.path),
            "fingerprint": spec.fingerprint,
            "dataset": spec.dataset,
            "encoder": {"model": spec.model, "pretrained": spec.pretrained, "weights": spec.weights_sha256},
            "precision": spec.precision,
            "layers": {layer: spec.dims[layer] for layer in spec.layers},
            "frames": spec.frames,
            "views": spec.views,
            "store_dtype": spec.store_dtype,
            "prompts": len(spec.prompts),
            "videos": dict(Counter(v.status for v in self.videos)),
            "splits": splits,
            "failures": dict(Counter(v.category for v in self.videos if v.status == "failed")),
            "bytes": size_on_disk(self.path),
        }


def open_cache(path: str | Path) -> Cache:
    """Open a Zarr directory or an HDF5 file that ``extract`` wrote.

    Nothing in it is executed, and nothing outside it is read. Raises :class:`ClipspmError` in one line
    for a path that is no cache or cannot be read.
    """
    path = Path(path)
    store = find_store(path)
    try:
        spec = store.spec()
        classes = store.classes()
        videos = tuple(store.records())
    except ClipspmError as error:
        raise ClipspmError(f"{path}: {error}") from error
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, OSError) as error:
        raise ClipspmError(
            f"{path} is damaged and cannot be read as a cache ({_one_line(error)}); "
            "extract it again with --overwrite"
        ) from error
    splits: dict[str, Split] = dict(classes)  # type: ignore[arg-type]
    return Cache(path, spec, videos, tuple(name for name, _ in classes), splits, store)


def list_caches(folder: Path | None = None) -> list[Path]:
    """The caches under ``folder`` (default: the home's), newest last."""
    folder = folder or caches_dir()
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if (p / SPEC).is_file() or (p.is_file() and p.suffix == ".h5")]
    return sorted((p for p in found if not p.name.endswith((".parts", ".new"))), key=_changed)


def _changed(path: Path) -> tuple[float, str]:
    files = [path / "ledger.jsonl", path / CLASSES, path / SPEC] if path.is_dir() else [path]
    return max(f.stat().st_mtime for f in files if f.exists()), path.name


def describe_caches() -> list[dict[str, Any]]:
    """One line of facts per cache under the home; what cannot be read says so."""
    rows = []
    for path in list_caches():
        try:
            facts = open_cache(path).summary()
        except ClipspmError as error:
            rows.append({"path": str(path), "error": str(error)})
            continue
        keep = ("path", "dataset", "fingerprint", "layers", "frames", "views", "videos", "bytes")
        rows.append({key: facts[key] for key in keep})
    return rows


def home_table(rows: list[dict[str, Any]]) -> Table:
    """:func:`describe_caches` for a terminal."""
    table = Table(title=f"caches under {caches_dir()}", title_justify="left")
    for column in ("cache", "data set", "videos", "layers", "frames", "MB"):
        table.add_column(column, overflow="fold")
    for row in rows:
        name = Path(row["path"]).name
        if "error" in row:
            table.add_row(name, "cannot be read", "", "", "", "")
            continue
        videos = ", ".join(f"{count} {status}" for status, count in row["videos"].items())
        frames = f"{row['frames']}" + (f" x {row['views']} views" if row["views"] > 1 else "")
        table.add_row(
            name, row["dataset"], videos, ", ".join(row["layers"]), frames, f"{row['bytes'] / 1e6:.1f}"
        )
    return table


def find_cache(path: str | Path | None = None, dataset: str | None = None) -> Path:
    """``path`` if given, else the newest cache (of ``dataset``) under the home."""
    if path is not None:
        return Path(path)
    caches = list_caches()
    for candidate in reversed(caches):
        if dataset is None:
            return candidate
        try:
            if find_store(candidate).spec().dataset == dataset:
                return candidate
        except (ClipspmError, OSError, ValueError, KeyError):
            continue
    wanted = f"of {dataset} " if dataset else ""
    raise ClipspmError(
        f"no cache {wanted}under {caches_dir()}: run `clipspm extract --dataset {dataset or 'NAME'}`, "
        "or name one with --cache PATH"
    )


def size_on_disk(path: Path) -> int:
    """Bytes that a cache takes."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
