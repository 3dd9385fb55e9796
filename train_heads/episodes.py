"""Episodes: which classes and videos make up each few-shot task.

Episode ``i`` of a stream is a function of (dataset, split, way, shot, queries, seed, i) and of the split's
class names and video ids, and of nothing else: not of the order of files on disk, the number of
workers, the batch size, the device, the platform or the numpy version. How it is made:

1. key = first 16 bytes of SHA-256 of ``["clipspm-episodes-v1", {spec}]`` as compact JSON, keys sorted;
2. row ``i`` of the Philox stream under that key (:mod:`.streams`): ``way`` words, then ``shot + queries``
   words for each class in turn;
3. the first words pick ``way`` different classes out of the names sorted by code point; each class's
   words pick its videos out of the ids sorted likewise; the first ``shot`` of them are supports.

Shapes: n episodes, C ways, S = C*shot supports, Q = C*queries queries.
"""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipspm.cache.errors import ClipspmError, UsageError
from clipspm.train_heads.atomic import replacing
from clipspm.train_heads.pool import SPLITS, Pool, Split
from clipspm.train_heads.streams import blocks, digest, sample_distinct

Ints = npt.NDArray[np.int64]

_SCHEME = "clipspm-episodes-v1"


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """What names a stream of episodes: ``way`` classes, ``shot`` supports and ``queries`` queries of each."""

    dataset: str
    split: Split
    way: int = 5
    shot: int = 1
    queries: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"unknown split {self.split!r}: one of {', '.join(SPLITS)}")
        for name, least in (("way", 2), ("shot", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def key(self) -> bytes:
        """The 32 bytes whose first 16 are the key of the stream."""
        return digest(_SCHEME, asdict(self))


@dataclass(frozen=True, eq=False)
class Episodes:
    """n drawn episodes, class by class: supports 0..shot-1 of the first class come first, and so on.

    ``classes`` [n, C] are rows of ``class_names``; ``support`` [n, S] and ``query`` [n, Q] are rows of
    ``video_ids``.
    """

    spec: EpisodeSpec
    classes: Ints
    support: Ints
    query: Ints
    class_names: tuple[str, ...]
    video_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, part: slice) -> "Episodes":
        """A run of these episodes."""
        return Episodes(
            self.spec,
            self.classes[part],
            self.support[part],
            self.query[part],
            self.class_names,
            self.video_ids,
        )

    @property
    def support_labels(self) -> Ints:
        """[n, S]: position of each support's class in its episode, 0..C-1."""
        return self._labels(self.spec.shot)

    @property
    def query_labels(self) -> Ints:
        """[n, Q]: position of each query's class in its episode, 0..C-1."""
        return self._labels(self.spec.queries)

    def _labels(self, each: int) -> Ints:
        labels = np.repeat(np.arange(self.spec.way, dtype=np.int64), each)
        return np.broadcast_to(labels, (len(self), labels.size))

    @cached_property
    def full_hash(self) -> str:
        """SHA-256 (64 hex digits) over the spec and the names and ids of every episode, in order."""
        small = self.compact()
        state = hashlib.sha256(digest(_SCHEME, asdict(small.spec), small.class_names, small.video_ids))
        for array in (small.classes, small.support, small.query):
            state.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
        return state.hexdigest()

    @property
    def hash(self) -> str:
        """The first 16 hex digits of :attr:`full_hash`: the name of these episodes."""
        return self.full_hash[:16]

    def compact(self) -> "Episodes":
        """The same episodes with only the names and ids that occur in them."""
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
        return Episodes(
            self.spec,
            classes.reshape(self.classes.shape).astype(np.int64),
            flat[:, :edge],
            flat[:, edge:],
            tuple(self.class_names[c] for c in used_classes),
            tuple(ids[i] for i in order),
        )

    def on(self, pool: Pool) -> "Episodes":
        """The same episodes as rows of ``pool``; a class or video it lacks is an error that names it."""
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
        return Episodes(
            self.spec,
            class_at[self.classes],
            video_at[self.support],
            video_at[self.query],
            pool.names,
            pool.ids,
        )

    def save(self, path: Path) -> None:
        """Write a small ``.npz`` (no pickle) that :meth:`load` reads."""
        small = self.compact()
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                spec=np.array(json.dumps(asdict(small.spec))),
                classes=small.classes.astype(np.int32),
                support=small.support.astype(np.int32),
                query=small.query.astype(np.int32),
                class_names=np.array(small.class_names),
                video_ids=np.array(small.video_ids),
                hash=np.array(self.full_hash),
            )

    @classmethod
    def load(cls, path: Path) -> "Episodes":
        """Read what :meth:`save` wrote; a file whose content is not what its hash says is an error."""
        try:
            with np.load(path, allow_pickle=False) as file:
                episodes = cls(
                    EpisodeSpec(**json.loads(str(file["spec"]))),
                    file["classes"].astype(np.int64),
                    file["support"].astype(np.int64),
                    file["query"].astype(np.int64),
                    tuple(file["class_names"].tolist()),
                    tuple(file["video_ids"].tolist()),
                )
                written = str(file["hash"])
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise ClipspmError(f"{path} is not a file of episodes: {error}") from error
        if episodes.full_hash != written:
            raise ClipspmError(f"{path} says hash {written[:16]} but holds episodes {episodes.hash}")
        return episodes


def check_request(pool: Pool, *, way: int, shot: int, queries: int) -> None:
    """Refuse what the split cannot give, in one line that names the class and both numbers."""
    if len(pool.names) < way:
        raise UsageError(
            f"{pool.dataset}: {way}-way episodes need {way} classes, the {pool.split} split has "
            f"{len(pool.names)}"
        )
    name, size = pool.smallest()
    if size < shot + queries:
        raise UsageError(
            f"{pool.dataset}: class {name!r} ({pool.split}) has {size} usable videos, "
            f"{shot} shots + {queries} queries need {shot + queries}"
        )


def draw(spec: EpisodeSpec, pool: Pool, n: int, start: int = 0) -> Episodes:
    """Episodes ``start .. start+n-1`` of the stream that ``spec`` names, as rows of ``pool``.

    Raises :class:`UsageError` if the split has too few classes or a class too few videos.
    """
    if (spec.dataset, spec.split) != (pool.dataset, pool.split):
        raise UsageError(
            f"episodes of {spec.dataset}/{spec.split} cannot be drawn from {pool.dataset}/{pool.split}"
        )
    check_request(pool, way=spec.way, shot=spec.shot, queries=spec.queries)
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
