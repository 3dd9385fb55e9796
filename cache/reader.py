"""Open a finished or growing cache and read its features."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipspm.cache.content import read_content
from clipspm.cache.home import caches_dir, demo_dirs
from clipspm.cache.ledger import TEXT_SHARD, digests, values_digest
from clipspm.cache.mapped import MappedFeatures
from clipspm.cache.seal import check_metadata
from clipspm.cache.spec import CLASSES, SPEC, CacheSpec, PlannedClass, Split, VideoRecord, format_of
from clipspm.cache.store import TEXT, DamagedShard, Store, find_store, readable
from clipspm.errors import ClipspmError
from clipspm.tables import Table


@dataclass(frozen=True)
class Coverage:
    """``expected``: videos of the complete data set; ``found``: videos with features in the cache."""

    expected: int
    found: int

    @property
    def complete(self) -> bool:
        """Whether no video is missing."""
        return self.found >= self.expected


@dataclass(frozen=True)
class Cache:
    """Cached features of one data set.

    ``spec``: the settings that the features depend on. ``videos``: every planned video, in row order.
    ``class_names``: the classes in the order of the rows of :meth:`text`. ``class_splits``: each class's
    split (``train``, ``val``, ``test``, or ``none`` if unknown). ``expected``: videos per class in the
    complete data set. ``absent``: classes of the data set without any video here.
    """

    path: Path
    spec: CacheSpec
    videos: tuple[VideoRecord, ...]
    class_names: tuple[str, ...]
    class_splits: dict[str, Split]
    expected: dict[str, int]
    absent: tuple[PlannedClass, ...]
    store: Store = field(repr=False)
    _digests: Mapping[int, Mapping[str, str]] = field(repr=False)
    _features: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def good(self) -> tuple[VideoRecord, ...]:
        """The videos with status ``ok``, aligned with the rows of :meth:`features`."""
        return tuple(v for v in self.videos if v.status == "ok")

    def features(self, layer: str = "final") -> np.ndarray:
        """Features of the good videos, [number of good videos, V, T, D], read once and kept in memory.

        Raises :class:`DamagedShard` for a shard that does not match its digest.
        """
        if layer not in self._features:
            self._features[layer] = self.mapped(layer)[:]
        return self._features[layer]

    def mapped(self, layer: str = "final") -> MappedFeatures:
        """:meth:`features` from memory maps: ``mapped(layer)[a:b]`` reads only these rows."""
        if layer not in self.spec.layers:
            raise ClipspmError(f"{self.path} has no layer {layer!r}; it has {', '.join(self.spec.layers)}")
        rows = [row for row, video in enumerate(self.videos) if video.status == "ok"]
        with readable(self.path):
            return MappedFeatures(self.store, layer, rows, self.shards, self._digests, self.read_shard)

    def read_shard(self, layer: str, shard: int) -> np.ndarray:
        """All rows of a shard, [rows, V, T, D]; raises :class:`ClipspmError` if its digest does not match."""
        digest = self._digests.get(shard, {}).get(layer)
        try:
            return self.store.shard(layer, shard, self.shards[shard], digest)
        except DamagedShard as error:
            if self._has_changed():
                raise ClipspmError(f"{self.path} has changed since it was opened; open it again") from error
            raise

    def _has_changed(self) -> bool:
        try:
            return digests(find_store(self.path).entries()) != self._digests
        except Exception:  # damaged bytes can raise anything
            return False

    @cached_property
    def shards(self) -> list[range]:
        """The rows of each shard."""
        with readable(self.path):
            return self.store.shards()

    def require(self, splits: Iterable[Split], *, allow_partial: bool = False) -> "Cache":
        """Return this cache if no video of ``splits`` is pending (failed videos do not count as missing).

        Otherwise raises :class:`ClipspmError`. With ``allow_partial``, returns the cache without the videos
        that are missing or damaged.
        """
        wanted = set(splits)
        missing = [v for v in self.videos if v.status == "pending" and v.split in wanted]
        if not allow_partial:
            if missing:
                planned, names = sum(v.split in wanted for v in self.videos), ", ".join(sorted(wanted))
                raise ClipspmError(
                    f"{self.path} is not complete: {len(missing)} of {planned} videos ({names}) are not "
                    f"extracted yet, the first is {missing[0].id!r}. Run the same `clipspm extract`, or "
                    "leave them out with --allow-partial"
                )
            return self
        lost: set[int] = set()
        for shard, rows in enumerate(self.shards):
            if any(self.videos[row].status == "ok" for row in rows) and not self._is_whole(shard):
                lost |= set(rows)
        videos = tuple(
            replace(v, status="pending") if row in lost and v.status == "ok" else v
            for row, v in enumerate(self.videos)
        )
        return replace(self, videos=videos, _features={})

    def _is_whole(self, shard: int) -> bool:
        try:
            for layer in self.spec.layers:
                self.read_shard(layer, shard)
        except ClipspmError:
            return False
        return True

    def coverage(self, split: Split) -> Coverage:
        """How many of the videos of ``split`` the cache holds."""
        names = {name for name, home in self.class_splits.items() if home == split}
        expected = sum(self.expected[name] for name in names)
        expected += sum(count for _, home, count in self.absent if home == split)
        return Coverage(expected, sum(video.class_name in names for video in self.good))

    def text(self, *, templates: bool = False) -> np.ndarray:
        """Class-name features, float32 [C, D]: the unweighted mean over the templates.

        With ``templates=True``, one per template, [C, P, D]. Raises :class:`ClipspmError` if damaged, and for
        the mean of none: the encoder has no text tower.
        """
        if not (self.spec.has_text or templates):
            raise ClipspmError(f"{self.path} has no class texts: {self.spec.model} has no text tower")
        with readable(self.path):
            each = self.store.array(TEXT)
        if values_digest(each) != self._digests.get(TEXT_SHARD, {}).get(TEXT):
            raise ClipspmError(
                f"{self.path}: the class texts are damaged (they do not match their digest); `clipspm cache "
                f"verify {self.path} --repair` and the same `clipspm extract` make them again"
            )
        return each if templates else each.mean(axis=1, dtype=np.float32)

    def with_splits(self, class_splits: Mapping[str, Split]) -> "Cache":
        """Return the cache under another class split; classes not named get the split ``none``.

        Absent classes are dropped if the splits change, because their new split is unknown. Raises
        :class:`ClipspmError` for a class that the cache does not have.
        """
        unknown = sorted(set(class_splits) - set(self.class_names))
        if unknown:
            raise ClipspmError(
                f"class {unknown[0]!r} of the splits is not in {self.path}; it has, for example, "
                f"{', '.join(self.class_names[:5])}"
            )
        splits: dict[str, Split] = {c: class_splits.get(c, "none") for c in self.class_names}
        videos = tuple(replace(v, split=splits[v.class_name]) for v in self.videos)
        absent = self.absent if splits == self.class_splits else ()
        return replace(self, videos=videos, class_splits=splits, absent=absent)

    def summary(self) -> dict[str, Any]:
        """What ``clipspm cache info`` prints, in plain JSON types."""
        spec = self.spec
        splits = {}
        for split in ("train", "val", "test", "none"):
            names = [c for c, s in self.class_splits.items() if s == split]
            if names:
                kept = sum(v.split == split for v in self.good)
                splits[split] = {
                    "classes": len(names),
                    "videos": kept,
                    "expected": self.coverage(split).expected,
                }
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
            "described_classes": len(spec.descriptions),
            "videos": dict(Counter(v.status for v in self.videos)),
            "splits": splits,
            "failures": dict(Counter(v.category for v in self.videos if v.status == "failed")),
            "shorter_than_asked": sum(v.repeats for v in self.good),
            "bytes": size_on_disk(self.path),
        }


def open_cache(path: str | Path) -> Cache:
    """Open a Zarr directory or an HDF5 file that ``extract`` wrote.

    Nothing in it is executed, and nothing outside it is read. Raises :class:`ClipspmError` for a path that
    is not a cache or cannot be read.
    """
    path = Path(path)
    store = find_store(path)
    if path.is_dir():
        check_metadata(path)
    content = read_content(store)
    return Cache(
        path=path,
        spec=content.spec,
        videos=content.videos,
        class_names=tuple(content.class_splits),
        class_splits=content.class_splits,
        expected={name: count for name, _, count in content.classes},
        absent=content.absent,
        store=store,
        _digests=content.sums,
    )


def list_caches(folder: Path | None = None) -> list[Path]:
    """The caches under ``folder`` (default: the caches folder and the demo's caches), newest last."""
    places = [] if folder else [place / "cache.zarr" for place in demo_dirs()]
    folder = folder or caches_dir()
    places += folder.iterdir() if folder.is_dir() else []
    found = [p for p in places if (p / SPEC).is_file() or (p.is_file() and format_of(p) == "hdf5")]
    return sorted(
        (p for p in found if not p.name.endswith((".parts", ".new", ".old", ".dead"))), key=_last_modified
    )


def _last_modified(path: Path) -> tuple[float, str]:
    files = [path / "ledger.jsonl", path / CLASSES, path / SPEC] if path.is_dir() else [path]
    return max(f.stat().st_mtime for f in files if f.exists()), path.name


def describe_caches() -> list[dict[str, Any]]:
    """Summaries of the caches under the home; one that cannot be read has ``error`` instead."""
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
    """The result of :func:`describe_caches` as a table."""
    lines = []
    for row in rows:
        name = Path(row["path"]).name
        if "error" in row:
            lines.append((name, "cannot be read", "", "", "", ""))
            continue
        videos = ", ".join(f"{count} {status}" for status, count in row["videos"].items())
        frames = f"{row['frames']}" + (f" x {row['views']} views" if row["views"] > 1 else "")
        size = f"{row['bytes'] / 1e6:.1f}"
        lines.append((name, row["dataset"], videos, ", ".join(row["layers"]), frames, size))
    columns = ("cache", "data set", "videos", "layers", "frames", "MB")
    return Table(columns, lines, f"caches under {caches_dir()}")


def find_cache(path: str | Path | None = None, dataset: str | None = None) -> Path:
    """``path`` if given, else the newest cache (of ``dataset``) under the home.

    Raises :class:`ClipspmError` if there is none.
    """
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
    """Bytes that a cache takes on disk."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
