"""Read and validate the metadata of a cache: spec, classes, videos, ledger and array shapes.

A digest proves that nothing changed since it was written, not that it was valid then. Opening, verifying and
extending a cache all use these checks.

Shapes: N videos, V views, T frames, D feature width, C classes, P prompt templates.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from clipspm.cache.ledger import apply, digests
from clipspm.cache.spec import (
    CLASSES,
    FINAL,
    LEDGER,
    SPEC,
    SPLITS,
    VIDEOS,
    CacheSpec,
    PlannedClass,
    Split,
    Status,
    VideoRecord,
)
from clipspm.cache.store import TEXT, Store, layer_key, readable
from clipspm.errors import ClipspmError

#: the largest layer width, number of frames or views, and frame size in pixels that are accepted
_MOST_WIDE, _MOST_FRAMES, _MOST_PIXELS = 2**20, 2**16, 2**16


@dataclass(frozen=True)
class Content:
    """The validated metadata of a cache.

    ``classes``: (name, split, number of videos when complete), in the order of the text rows; ``absent``: the
    same for classes without videos; ``videos`` in row order; ``sums``: digest per layer, by shard.
    """

    spec: CacheSpec
    classes: tuple[PlannedClass, ...]
    absent: tuple[PlannedClass, ...]
    videos: tuple[VideoRecord, ...]
    sums: Mapping[int, Mapping[str, str]]

    @property
    def class_splits(self) -> dict[str, Split]:
        """The split of each class in ``classes``."""
        return {name: split for name, split, _ in self.classes}


def read_content(store: Store) -> Content:
    """Read the metadata of ``store``; raises :class:`ClipspmError` with the first invalid value."""
    with readable(store.path):
        classes, texts = store.classes(), store.shape(TEXT)
        count = texts[0] if texts else 0
        spec, entries = store.spec(), store.entries()
        videos = tuple(apply(entries, store.planned()))
        _raise_first(store, problems(store, spec, videos, classes))
        _raise_first(store, text_problems(store, spec, classes))
        return Content(spec, tuple(classes[:count]), tuple(classes[count:]), videos, digests(entries))


def read_records(store: Store) -> list[VideoRecord]:
    """Read the videos of a cache to extend; its classes and texts are not checked, they can be rewritten.

    Raises :class:`ClipspmError` with the first invalid value.
    """
    with readable(store.path):
        videos = store.records()
        _raise_first(store, problems(store, store.spec(), videos))
    return videos


def _raise_first(store: Store, found: Iterable[tuple[str, str]]) -> None:
    for where, what in found:
        raise ClipspmError(
            f"{store.path} is not a valid cache: {where}: {what}; see `clipspm cache verify {store.path}`"
        )


def problems(
    store: Store,
    spec: CacheSpec,
    videos: Sequence[VideoRecord],
    classes: Sequence[PlannedClass] | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield (file or array, what is invalid), the first of each kind. ``classes`` None skips their checks."""
    wrong = list(_spec_problems(spec))
    if classes is not None:
        wrong += _class_problems(classes)
    yield from wrong
    if not wrong:  # the checks below use spec and classes
        splits = None if classes is None else {name: split for name, split, _ in classes}
        yield from _video_problems(videos, spec.frames, splits)
        size, kind = store.shard_size, {"fp16": "float16", "fp32": "float32"}[spec.store_dtype]
        for layer in spec.layers:
            row = (spec.views, spec.frames, spec.dims[layer])
            yield from _array_problems(store, layer_key(layer), (len(videos), *row), kind, size)


def text_problems(
    store: Store, spec: CacheSpec, classes: Sequence[PlannedClass]
) -> Iterator[tuple[str, str]]:
    """Like :func:`problems`, for the class texts, which the last (absent) classes may lack."""
    count = min(len(classes), *store.shape(TEXT)[:1])
    yield from _array_problems(store, TEXT, (count, len(spec.prompts), spec.dims["final"]), "float32", count)


def _spec_problems(spec: CacheSpec) -> Iterator[tuple[str, str]]:
    for name, most in (
        ("frames", _MOST_FRAMES),
        ("views", _MOST_FRAMES),
        ("resize", _MOST_PIXELS),
        ("crop", _MOST_PIXELS),
    ):
        if not _is_integer(getattr(spec, name), 1, most):
            yield SPEC, f"{name} is {getattr(spec, name)!r}"
    if spec.crop_width is not None and not _is_integer(spec.crop_width, 1, _MOST_PIXELS):
        yield SPEC, f"crop_width is {spec.crop_width!r}"
    if len(spec.fill) != 3 or not all(_is_integer(value, 0, 255) for value in spec.fill):
        yield SPEC, f"fill is {spec.fill}"
    if len({layer_key(str(layer)) for layer in spec.layers}) < len(spec.layers) or FINAL not in spec.layers:
        yield SPEC, f"layers are {', '.join(map(str, spec.layers))}"
    if set(spec.dims) != set(spec.layers) or not all(
        _is_integer(d, 1, _MOST_WIDE) for d in spec.dims.values()
    ):
        yield SPEC, f"dims are {spec.dims}"
    for name, texts in spec.descriptions.items():
        if not (isinstance(texts, list) and texts and all(map(_is_name, texts))):
            yield SPEC, f"the descriptions of class {name!r} are {_short(texts)}"
            break
    for name in ("logit_scale", "logit_bias"):
        value = getattr(spec, name)
        if value is not None and not math.isfinite(value):
            yield SPEC, f"{name} is {value}"
    for name in ("mean", "std"):
        if len(getattr(spec, name)) != 3 or not all(map(math.isfinite, getattr(spec, name))):
            yield SPEC, f"{name} is {getattr(spec, name)}"


def _class_problems(classes: Sequence[PlannedClass]) -> Iterator[tuple[str, str]]:
    if not classes:
        yield CLASSES, "there are no classes"
    names = [name for name, _, _ in classes]
    yield from _first_invalid(CLASSES, "the name of class", names, range(len(names)), _is_name)
    yield from _first_duplicate(CLASSES, "class", names)
    yield from _first_invalid(
        CLASSES, "the split of class", [split for _, split, _ in classes], names, SPLITS.__contains__
    )
    yield from _first_invalid(
        CLASSES, "the number of videos of class", [n for _, _, n in classes], names, _is_count
    )


def _video_problems(
    videos: Sequence[VideoRecord], frames: int, splits: Mapping[str, Split] | None
) -> Iterator[tuple[str, str]]:
    ids = [video.id for video in videos]
    yield from _first_invalid(VIDEOS, "the id of row", ids, range(len(ids)), _is_text)
    yield from _first_duplicate(VIDEOS, "id", ids)
    wrong = [
        finding
        for where, name, is_valid in (
            (VIDEOS, "path", _is_text),
            (VIDEOS, "class_name", _is_text if splits is None else splits.__contains__),
            (VIDEOS, "split", _is_split),
            (LEDGER, "status", get_args(Status).__contains__),
            (LEDGER, "category", _is_text),
            (LEDGER, "error", _is_text),
            (LEDGER, "backend", _is_text),
            (LEDGER, "frames", _is_count),
            (LEDGER, "fps", lambda fps: fps is None or (_is_time(fps) and fps > 0)),
            (LEDGER, "indices", lambda found: len(found) in (0, frames) and all(map(_is_count, found))),
            (LEDGER, "pts_seconds", lambda found: all(time is None or _is_time(time) for time in found)),
        )
        for finding in _first_invalid(
            where, f"{name} of video", [getattr(v, name) for v in videos], ids, is_valid
        )
    ]
    yield from wrong
    for video in videos if not wrong else ():
        taken, timed = len(video.indices), len(video.pts_seconds)
        if splits is not None and video.split != splits[video.class_name]:
            yield VIDEOS, f"video {video.id!r} is in split {video.split}, its class in another"
        elif timed not in (0, taken):
            yield LEDGER, f"video {video.id!r} has {timed} times of {taken} frames"
        elif taken and video.frames and max(video.indices) >= video.frames:
            yield LEDGER, f"video {video.id!r} gave frame {max(video.indices)} of {video.frames}"
        else:
            continue
        return


def _array_problems(
    store: Store, key: str, shape: tuple[int, ...], kind: str, size: int
) -> Iterator[tuple[str, str]]:
    """Check shape, type and chunks (of ``size`` rows) of an array."""
    chunks = (max(1, min(size, shape[0])), *(max(1, n) for n in shape[1:]))
    if store.shape(key) != shape:
        yield key, f"its shape is {store.shape(key)}, not {shape}"
    elif store.dtype(key).name != kind:
        yield key, f"its type is {store.dtype(key)}, not {kind}"
    elif 0 not in shape and store.chunks(key) != chunks:
        yield key, f"its chunks are {store.chunks(key)}, not {chunks}"


# ------------------------------------------------------------------------------------------------- values


def _first_invalid(
    where: str, what: str, values: Sequence[Any], names: Sequence[Any], is_valid: Callable[[Any], bool]
) -> Iterator[tuple[str, str]]:
    """Yield the first of ``values`` for which ``is_valid`` is false; equal values are checked once."""

    def is_hashable_and_valid(value: Any) -> bool:
        return isinstance(value, Hashable) and is_valid(value)

    try:
        if all(map(is_hashable_and_valid, dict.fromkeys(values))):
            return
    except TypeError:  # a list among them, or a number where there should be many
        pass
    for name, value in zip(names, values, strict=True):
        try:
            if is_hashable_and_valid(value):
                continue
        except TypeError:
            pass
        yield where, f"{what} {name!r} is {_short(value)}"
        return


def _first_duplicate(where: str, what: str, names: Sequence[Any]) -> Iterator[tuple[str, str]]:
    seen = set()
    for name in names:
        if not isinstance(name, str):
            continue
        if name in seen:
            yield where, f"{what} {name!r} occurs twice"
            return
        seen.add(name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_count(value: Any) -> bool:
    return _is_integer(value, 0, 2**40)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_split(value: Any) -> bool:
    return value in SPLITS


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
