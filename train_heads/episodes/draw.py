"""Episodes: which classes and videos make up each few-shot task.

Episode ``i`` of a stream is a function of (dataset, split, way, shot, queries, seed, i) and of the split's
class names and video ids, and of nothing else: not of the order of files on disk, the number of
workers, the batch size, the device, the platform or the numpy version. How it is made:

1. key = first 16 bytes of SHA-256 of ``["clipspm-episodes-v1", {spec}]`` as compact JSON, keys sorted;
2. row ``i`` of the Philox stream under that key (:mod:`.random`): ``way`` words, then ``shot + queries``
   words for each class in turn;
3. the first words pick ``way`` different classes out of the names sorted by code point; each class's
   words pick its videos out of the ids sorted likewise; the first ``shot`` of them are supports.

Two other kinds of episodes have streams of their own (:mod:`.queries`): ``dirichlet`` draws how many of the Q
queries each class has, as in "Realistic evaluation of transductive few-shot learning" (arXiv 2204.11181),
because a transductive method may exploit that they are balanced; ``sources`` keeps clips that were cut from
the source of a support out of the queries (:mod:`.sources`).

Shapes: n episodes, C ways, S = C*shot supports, Q = C*queries queries.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipspm.cache.checked import load_arrays
from clipspm.cache.disk import reading, replacing
from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.episodes.pool import SPLITS, Pool, Split
from clipspm.train_heads.episodes.queries import pick_queries, words_needed
from clipspm.train_heads.episodes.random import blocks, digest, sample_distinct

Ints = npt.NDArray[np.int64]

_SCHEME = "clipspm-episodes-v1"
MOST = 10_000_000  #: most episodes drawn at once


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """What names a stream of episodes: ``way`` classes, ``shot`` supports and ``queries`` queries of each.

    ``dirichlet``: 0 for balanced queries, else the parameter of the distribution that ``way * queries``
    queries are shared out by (2 in the literature). ``sources``: empty, or the rule by which no query shares
    a source with a support: ``name`` (the data set's own names) or a regular expression whose first group
    is the source.
    """

    dataset: str
    split: Split
    way: int = 5
    shot: int = 1
    queries: int = 1
    seed: int = 0
    dirichlet: int = 0
    sources: str = ""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"unknown split {self.split!r}: one of {', '.join(SPLITS)}")
        for name, least in (("way", 2), ("shot", 1), ("queries", 1), ("dirichlet", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UsageError(f"{name} is {value!r}; it must be a whole number, at least {least}")
        if not (isinstance(self.dataset, str) and isinstance(self.sources, str) and type(self.seed) is int):
            raise UsageError("dataset and sources of episodes are text, and their seed is a whole number")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, ``dirichlet`` and ``sources`` only if they are used, so that hashes stay."""
        return {k: v for k, v in asdict(self).items() if v or k not in ("dirichlet", "sources")}

    @property
    def key(self) -> bytes:
        """The 32 bytes whose first 16 are the key of the stream."""
        return digest(_SCHEME, self.as_dict())

    def describe(self) -> str:
        """Return ``5-way 1-shot``, and what is unusual about the episodes."""
        special = [f"unbalanced queries (Dirichlet {self.dirichlet})"] if self.dirichlet else []
        special += ["no source in common"] if self.sources else []
        return ", ".join([f"{self.way}-way {self.shot}-shot", *special])


@dataclass(frozen=True, eq=False)
class Episodes:
    """n drawn episodes, class by class: supports 0..shot-1 of the first class come first, and so on.

    ``classes`` [n, C] are rows of ``class_names``; ``support`` [n, S] and ``query`` [n, Q] are rows of
    ``video_ids``. ``counts`` [n, C]: queries of each class, None where all have as many.
    """

    spec: EpisodeSpec
    classes: Ints
    support: Ints
    query: Ints
    class_names: tuple[str, ...]
    video_ids: tuple[str, ...]
    counts: Ints | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, part: slice) -> "Episodes":
        """Return a slice of these episodes."""
        return replace(
            self,
            classes=self.classes[part],
            support=self.support[part],
            query=self.query[part],
            counts=None if self.counts is None else self.counts[part],
        )

    @property
    def support_labels(self) -> Ints:
        """Position of each support's class in its episode, [n, S], 0..C-1."""
        return self._labels(self.spec.shot)

    @property
    def query_labels(self) -> Ints:
        """Position of each query's class in its episode, [n, Q], 0..C-1."""
        if self.counts is None:
            return self._labels(self.spec.queries)
        each = np.tile(np.arange(self.spec.way, dtype=np.int64), len(self))
        return np.repeat(each, self.counts.ravel()).reshape(len(self), -1)

    def _labels(self, each: int) -> Ints:
        labels = np.repeat(np.arange(self.spec.way, dtype=np.int64), each)
        return np.broadcast_to(labels, (len(self), labels.size))

    @cached_property
    def full_hash(self) -> str:
        """SHA-256 (64 hex digits) of the spec and of the names and ids of every episode, in order."""
        small = self.compact()
        state = hashlib.sha256(digest(_SCHEME, small.spec.as_dict(), small.class_names, small.video_ids))
        for array in small._arrays().values():
            state.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
        return state.hexdigest()

    def _arrays(self) -> dict[str, Ints]:
        arrays = {"classes": self.classes, "support": self.support, "query": self.query}
        return arrays if self.counts is None else {**arrays, "counts": self.counts}

    @property
    def hash(self) -> str:
        """The first 16 hex digits of :attr:`full_hash`: the name of these episodes."""
        return self.full_hash[:16]

    def compact(self) -> "Episodes":
        """Return the same episodes with only the names and ids that occur in them."""
        used_classes, classes = np.unique(self.classes, return_inverse=True)
        videos = np.concatenate([self.support, self.query], axis=1)
        used_videos, flat = np.unique(videos, return_inverse=True)
        flat = flat.reshape(videos.shape)
        ids = [self.video_ids[v] for v in used_videos]
        order = sorted(range(len(ids)), key=ids.__getitem__)  # by id: the same whatever the pool's order
        rank = np.empty(len(ids), dtype=np.int64)
        rank[order] = np.arange(len(ids))
        flat = rank[flat]
        edge = self.support.shape[1]
        return replace(
            self,
            classes=classes.reshape(self.classes.shape).astype(np.int64),
            support=flat[:, :edge],
            query=flat[:, edge:],
            class_names=tuple(self.class_names[c] for c in used_classes),
            video_ids=tuple(ids[i] for i in order),
        )

    def on(self, pool: Pool) -> "Episodes":
        """Return the same episodes as rows of ``pool``; an error names a class or video that it lacks."""
        if self.class_names is pool.names and self.video_ids is pool.ids:
            return self

        def rows(what: str, wanted: tuple[str, ...], there: tuple[str, ...]) -> Ints:
            place = {name: i for i, name in enumerate(there)}
            missing = [name for name in wanted if name not in place]
            if missing:
                raise ClipspmError(
                    f"these episodes ({self.hash}) need {len(missing)} {what} that the {pool.split} split of "
                    f"this cache lacks, the first is {missing[0]!r}"
                )
            return np.array([place[name] for name in wanted], dtype=np.int64)

        class_at = rows("classes", self.class_names, pool.names)
        video_at = rows("videos", self.video_ids, pool.ids)
        return replace(
            self,
            classes=class_at[self.classes],
            support=video_at[self.support],
            query=video_at[self.query],
            class_names=pool.names,
            video_ids=pool.ids,
        )

    def save(self, path: Path) -> None:
        """Write a small ``.npz`` (no pickle) that :meth:`load` reads."""
        small = self.compact()
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                spec=np.array(json.dumps(small.spec.as_dict())),
                **{name: a.astype(np.int32) for name, a in small._arrays().items()},  # type: ignore[arg-type]
                class_names=np.array(small.class_names),
                video_ids=np.array(small.video_ids),
                hash=np.array(self.full_hash),
            )

    @classmethod
    def load(cls, path: Path) -> "Episodes":
        """Read what :meth:`save` wrote; refuse a file whose content does not match its hash."""
        problem = "is not a file of episodes"
        file, _ = load_arrays(path, problem=problem)
        with reading(path, problem):
            episodes = cls(
                EpisodeSpec(**json.loads(str(file["spec"]))),
                _integers(file, "classes"),
                _integers(file, "support"),
                _integers(file, "query"),
                tuple(map(str, file["class_names"].tolist())),
                tuple(map(str, file["video_ids"].tolist())),
                _integers(file, "counts") if "counts" in file else None,
            )
            written = str(file["hash"])
            episodes.check()
        if episodes.full_hash != written:
            raise ClipspmError(f"{path} says hash {written[:16]} but holds episodes {episodes.hash}")
        return episodes

    def check(self) -> None:
        """Raise ValueError if shapes, ranges or counts do not fit the spec, or anything occurs twice."""
        spec, n = self.spec, len(self)
        wanted = {"classes": spec.way, "support": spec.way * spec.shot, "query": spec.way * spec.queries}
        for name, array in self._arrays().items():
            shape = (n, wanted.get(name, spec.way))
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}; {spec.describe()} needs {shape}")
        if n < 1:
            raise ValueError("it holds no episode")
        for what, names, arrays in (
            ("class", self.class_names, (self.classes,)),
            ("video", self.video_ids, (self.support, self.query)),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"a {what} is listed twice")
            rows = np.sort(np.concatenate(arrays, axis=1), axis=1)
            if int(rows.min()) < 0 or int(rows.max()) >= len(names):
                raise ValueError(f"an episode names a {what} beyond the {len(names)} that are listed")
            twice = (np.diff(rows, axis=1) == 0).any(1)
            if twice.any():
                raise ValueError(f"episode {int(twice.argmax())} has the same {what} twice")
        if (self.counts is not None) != bool(spec.dirichlet):
            raise ValueError("queries of each class are counted in unbalanced episodes, and only there")
        if self.counts is not None:
            wrong = (self.counts < 0).any(1) | (self.counts.sum(1) != wanted["query"])
            if wrong.any():
                raise ValueError(f"the counts of episode {int(wrong.argmax())} are not those of its queries")

    def check_classes(self, pool: Pool) -> None:
        """Raise :class:`ClipspmError` if a video of ``pool`` is not of the class it stands for."""
        for what, videos, labels in (
            ("support", self.support, self.support_labels),
            ("query", self.query, self.query_labels),
        ):
            wrong = (pool.labels[videos] != np.take_along_axis(self.classes, labels, 1)).any(1)
            if wrong.any():
                raise ClipspmError(
                    f"episode {int(wrong.argmax())} has a {what} of another class than it says"
                )


def _integers(file: Any, name: str) -> Ints:
    array = file[name]
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise ValueError(f"{name} is not a table of whole numbers")
    return np.asarray(array, dtype=np.int64)


def check_frames(cached: int, wanted: int) -> None:
    """Refuse to sample more frames than are cached."""
    if not 1 <= wanted <= cached:
        raise UsageError(f"{wanted} frames asked for, the cache holds {cached} per video")


def check_request(pool: Pool, *, way: int, shot: int, queries: int) -> None:
    """Refuse what the split cannot give, in one line that names the class and both numbers."""
    there = len(pool.names)
    if there < way:
        hint = "" if there < 2 else f": try --way {there}"
        if not there:
            hint = (
                ': give --splits FILE, {"train": [class, ...], "val": [...], "test": [...]} in JSON or TOML'
            )
        raise UsageError(
            f"{pool.dataset}: {way}-way episodes need {way} classes, the {pool.split} split has {there}{hint}"
        )
    name, size = pool.smallest()
    if size < shot + queries:
        raise UsageError(
            f"{pool.dataset}: class {name!r} ({pool.split}) has {size} usable videos, "
            f"{shot} shots + {queries} queries need {shot + queries}"
        )


def draw(spec: EpisodeSpec, pool: Pool, n: int, start: int = 0) -> Episodes:
    """Draw episodes ``start .. start+n-1`` of the stream that ``spec`` names, as rows of ``pool``.

    Raises :class:`UsageError` if the split has too few classes or a class too few videos.
    """
    if (spec.dataset, spec.split) != (pool.dataset, pool.split):
        raise UsageError(
            f"episodes of {spec.dataset}/{spec.split} cannot be drawn from {pool.dataset}/{pool.split}"
        )
    if not 1 <= n <= MOST:
        raise UsageError(f"{n} episodes asked for; at least 1 is needed, and at most {MOST:,}")
    check_request(pool, way=spec.way, shot=spec.shot, queries=spec.queries)
    if spec.dirichlet or spec.sources:
        return _draw_special(spec, pool, n, start)
    each = spec.shot + spec.queries
    raw = blocks(spec.key, start, n, spec.way * (1 + each))
    classes = sample_distinct(raw[:, : spec.way], len(pool.names))
    picks = sample_distinct(raw[:, spec.way :].reshape(n * spec.way, each), pool.sizes[classes].ravel())
    videos = picks.reshape(n, spec.way, each) + pool.starts[classes][..., None]
    return Episodes(
        spec,
        classes,
        videos[..., : spec.shot].reshape(n, -1),
        videos[..., spec.shot :].reshape(n, -1),
        pool.names,
        pool.ids,
    )


def _draw_special(spec: EpisodeSpec, pool: Pool, n: int, start: int) -> Episodes:
    """Draw classes and supports from the first words of a row, and its special queries from the rest."""
    edge = spec.way * (1 + spec.shot)
    raw = blocks(spec.key, start, n, edge + words_needed(spec))
    classes = sample_distinct(raw[:, : spec.way], len(pool.names))
    words = raw[:, spec.way : edge].reshape(n * spec.way, spec.shot)
    picks = sample_distinct(words, pool.sizes[classes].ravel()).reshape(n, spec.way, spec.shot)
    support = (picks + pool.starts[classes][..., None]).reshape(n, -1)
    query, counts = pick_queries(spec, pool, classes, support, raw[:, edge:])
    shared_out = counts if spec.dirichlet else None
    return Episodes(spec, classes, support, query, pool.names, pool.ids, shared_out)
