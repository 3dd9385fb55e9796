"""Find which clips were cut from the same source: a query that shares one with a support is too easy.

Sources follow from the benchmarks' names: UCF101's groups (``v_Drumming_g07_c02``), HMDB51's stem before the
action and its attributes, Kinetics' YouTube id. Each clip of Something-Something is a source of its own.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from clipspm.errors import UsageError
from clipspm.train_heads.episodes.pool import Pool

#: the data set's own rule; any other rule is a regular expression whose first group is the source
BY_NAME = "name"
#: seconds a pattern may take for one name
_PATIENCE = 2.0

_HMDB_ATTRIBUTES = re.compile(r"_[a-z]_(?:nm|cm)_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+$", re.IGNORECASE)
_UCF_CLIP = re.compile(r"^(.+_g\d+)_c\d+$", re.IGNORECASE)
_KINETICS_TIMES = re.compile(r"_\d+_\d+$")


def _hmdb51(stem: str, class_name: str) -> str:
    source = _HMDB_ATTRIBUTES.sub("", stem)
    action = "_" + class_name.replace(" ", "_")
    return source[: -len(action)] if source.lower().endswith(action.lower()) else source


def _ucf101(stem: str, class_name: str) -> str:
    found = _UCF_CLIP.match(stem)
    return found[1] if found else stem


def _kinetics(stem: str, class_name: str) -> str:
    return _KINETICS_TIMES.sub("", stem)


def _own(stem: str, class_name: str) -> str:
    return stem


_RULES: dict[str, Callable[[str, str], str]] = {
    "hmdb51": _hmdb51,
    "ucf101": _ucf101,
    "kinetics100": _kinetics,
    "ssv2-full": _own,
    "ssv2-small": _own,
    **dict.fromkeys(("demo", "demo-look", "demo-both", "demo-told", "demo-lied"), _own),
}


def source_of(dataset: str, video_id: str, class_name: str, rule: str = BY_NAME) -> str:
    """Return the source of a video by ``rule``; a video whose name does not fit is a source of its own."""
    if rule != BY_NAME:
        try:
            found = _pattern(rule).search(video_id, timeout=_PATIENCE)
        except TimeoutError:
            raise UsageError(
                f"--source-pattern {rule!r} takes more than {_PATIENCE:.0f} s on {video_id!r}"
            ) from None
        source = None if found is None else found[1] if found.re.groups else found[0]
        return video_id if source is None else source
    if dataset not in _RULES:
        raise UsageError(
            f"no rule says which clips of {dataset} share a source: give one that finds it in a video's id, "
            r"such as --source-pattern '^(.*)_\d+$'"
        )
    return _RULES[dataset](video_id.rsplit("/", 1)[-1], class_name)


def sources(pool: Pool, rule: str = BY_NAME) -> npt.NDArray[np.int64]:
    """Return a number per video of ``pool``, [N], the same for videos of one source."""
    names = [
        source_of(pool.dataset, video, pool.names[label], rule)
        for video, label in zip(pool.ids, pool.labels, strict=True)
    ]
    return np.unique(np.array(names, dtype=object), return_inverse=True)[1].astype(np.int64)


@lru_cache(maxsize=1)
def _pattern(rule: str) -> Any:
    import regex  # unlike re, it has a timeout

    try:
        return regex.compile(rule)
    except regex.error as error:
        raise UsageError(f"--source-pattern {rule!r} is not a regular expression: {error}") from error
