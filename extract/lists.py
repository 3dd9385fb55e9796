"""Read the published video lists of the benchmarks, and find the files that they refer to.

A list says which videos belong to which class and split. Files are matched by the video's name alone, because
lists and copies of a data set differ in folders and extensions.

Formats are named after the code that the lists come with: ``trx`` (``trainlist03.txt``: ``folder/id``),
``clip-fsar`` (``train_few_shot.txt``: ``test0//videos/fencing/x.avi``, ``test0/88644``), ``cmn`` (``class
name/id_start_end``), ``ssv2-json`` (the data set's own labels) and ``kinetics-csv``.
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from clipspm.cache.disk import check_size, reading
from clipspm.cache.spec import Split
from clipspm.errors import ClipspmError
from clipspm.extract.suffixes import stem

ListFormat = Literal["trx", "clip-fsar", "cmn", "ssv2-json", "kinetics-csv"]

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
#: a class given as split and number, such as ``train24``
_LIST_ID = re.compile(r"(train|val|test)[0-9]+")
#: a YouTube id with start and end in seconds, such as ``PxhBbzBNQIQ_000002_000012``
_CLIP_OF = re.compile(r"(?P<youtube>.{11})_(?P<start>[0-9]+)_(?P<end>[0-9]+)")


@dataclass(frozen=True)
class Listed:
    """One entry of a list: the video's name without extension, its class as listed, its split if known."""

    stem: str
    label: str
    split: Split | None
    where: str


@dataclass(frozen=True)
class VideoList:
    """The entries of the list ``files``; ``names``: list id -> class name, from a file beside them."""

    format: ListFormat
    files: tuple[Path, ...]
    videos: tuple[Listed, ...]
    names: Mapping[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """The number of videos per split (``none`` if the list does not name one)."""
        found = Counter(video.split or "none" for video in self.videos)
        return {split: found[split] for split in (*_SPLITS, "none") if found[split]}

    def __str__(self) -> str:
        counts = "/".join(str(self.counts.get(split, 0)) for split in _SPLITS)
        shown = counts if "none" not in self.counts else str(self.counts["none"])
        return f"{self.format} format ({', '.join(f.name for f in self.files)}), {shown} videos"


def read_lists(folder: Path) -> VideoList:
    """Read the list files in ``folder``, or a single file; their names and content determine the format.

    Raises :class:`ClipspmError`, with file and line, if they cannot be read.
    """
    if not folder.exists():
        raise ClipspmError(f"no split files at {folder}")
    lists = _read_lists(folder)
    if not lists.videos:
        raise ClipspmError(f"{folder}: the lists there ({lists}) contain no videos")
    return lists


def _read_lists(folder: Path) -> VideoList:
    files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else [folder]
    tables = [f for f in files if f.suffix.lower() == ".csv"]
    texts: dict[Split, Path] = {}
    for file in files:
        split = _split_of(file.name)
        if split and (file.suffix.lower() == ".txt" or "list" in file.name.lower()):
            if split in texts:
                both = f"{texts[split].name} and {file.name}"
                raise ClipspmError(f"{folder} holds two lists of {split}: {both}; leave only one there")
            texts[split] = file
    documents = [f for f in files if f.suffix.lower() == ".json"]
    labels = [f for f in documents if _is_label_file(f)]
    if texts:
        return _read_texts(texts, documents)
    if labels:
        return VideoList("ssv2-json", tuple(labels), tuple(v for f in labels for v in _read_labels(f)), {})
    if tables:
        return VideoList(
            "kinetics-csv", tuple(tables), tuple(v for f in tables for v in _read_kinetics(f)), {}
        )
    raise ClipspmError(
        f"{folder} holds no list of videos in a known format: trainlist03.txt and the like, "
        "train_few_shot.txt, text files of class name/id, the labels JSON of Something-Something, or a "
        "Kinetics CSV"
    )


def _split_of(name: str) -> Split | None:
    """The split of a list file: the first of train, val and test in its name."""
    found = re.search(r"train|val|test", name.lower())
    return cast(Split, found.group()) if found else None


# ------------------------------------------------------------------------------------------------ text


def _read_texts(files: Mapping[Split, Path], documents: Iterable[Path]) -> VideoList:
    videos: list[Listed] = []
    formats: set[ListFormat] = set()
    for split in _SPLITS:
        if split not in files:
            continue
        for number, line in _lines(files[split]):
            where = f"{files[split]}, line {number}"
            format, label, stem = _parse(line, where)
            formats.add(format)
            videos.append(Listed(stem, label, split, where))
    if not videos:
        raise ClipspmError(f"{', '.join(str(f) for f in files.values())}: no videos are listed")
    format = "clip-fsar" if "clip-fsar" in formats else "cmn" if "cmn" in formats else "trx"
    few = any("few_shot" in f.name for f in files.values())
    names = _names_beside(documents)
    used = tuple(files[split] for split in _SPLITS if split in files)
    return VideoList("clip-fsar" if few else cast(ListFormat, format), used, tuple(videos), names)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not blank; there is no comment character."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipspmError(f"cannot read the list {file}: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip("\r \t"):
            yield number, line.strip("\r\n")


def _parse(line: str, where: str) -> tuple[ListFormat, str, str]:
    """Parse a line into (format, class as listed, video name without extension)."""
    if "//" in line:  # CLIP-FSAR: list id of the class, then the path
        path = line.split("//", 1)[1].strip("/").split("/")
        if len(path) < 2:
            raise ClipspmError(f"{where}: {line!r}: expected test0//folders/class/video.avi")
        return "clip-fsar", path[-2], stem(path[-1])
    parts = line.strip("/").split("/")
    if len(parts) < 2 or not parts[-1].strip():
        raise ClipspmError(f"{where}: {line!r} names no video: expected class/video")
    return ("cmn" if " " in parts[-2] else "trx"), parts[-2], stem(parts[-1])


def _names_beside(documents: Iterable[Path]) -> dict[str, str]:
    """Read ``{"train24": "Pouring something into something", ...}`` from JSON files beside the lists."""
    names: dict[str, str] = {}
    for file in documents:
        raw = _json(file)
        if not isinstance(raw, dict):
            continue
        for key, value in raw.items():
            if isinstance(value, str) and _LIST_ID.fullmatch(key):
                names[key] = without_brackets(value)
            elif isinstance(value, str) and _LIST_ID.fullmatch(value):  # the other way round
                names[value] = without_brackets(key)
    return names


def without_brackets(template: str) -> str:
    """``Putting [something] on [a table]`` -> ``Putting something on a table``."""
    return " ".join(template.replace("[", " ").replace("]", " ").replace(" ,", ",").split())


# ---------------------------------------------------------------------------------------- JSON and CSV


def _json(file: Path) -> Any:
    with reading(file, "is not readable JSON"):
        check_size(file)
        return json.loads(file.read_text("utf-8"))


def _is_label_file(file: Path) -> bool:
    raw = _json(file)
    first = raw[0] if isinstance(raw, list) and raw else None
    return isinstance(first, dict) and {"id", "template"} <= set(first)


def _read_labels(file: Path) -> Iterator[Listed]:
    for number, row in enumerate(_json(file), start=1):
        try:
            yield Listed(str(row["id"]), without_brackets(row["template"]), None, f"{file}, entry {number}")
        except (KeyError, TypeError, AttributeError) as error:
            raise ClipspmError(f"{file}, entry {number}: expected id and template, found {row!r}") from error


def _read_kinetics(file: Path) -> Iterator[Listed]:
    with reading(file, "is not a readable CSV file"):
        check_size(file)
        with file.open(newline="", encoding="utf-8-sig") as content:
            reader = csv.DictReader(content)
            missing = {"label", "youtube_id", "time_start", "time_end"} - set(reader.fieldnames or ())
            if missing:
                raise ClipspmError(
                    f"{file} lacks the column {sorted(missing)[0]!r}: a Kinetics CSV has label, youtube_id, "
                    "time_start and time_end"
                )
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                try:
                    start, end = int(float(row["time_start"])), int(float(row["time_end"]))
                except (TypeError, ValueError) as error:
                    raise ClipspmError(f"{where}: time_start and time_end must be numbers") from error
                yield Listed(f"{row['youtube_id']}_{start:06d}_{end:06d}", row["label"], None, where)


# ------------------------------------------------------------------------------------------------ files


class Files:
    """An index of video files by name, and by YouTube id and times."""

    def __init__(self, videos: Iterable[Path]) -> None:
        self.by_stem: dict[str, list[Path]] = defaultdict(list)
        self.by_youtube: dict[str, list[Path]] = defaultdict(list)
        for path in videos:
            name = stem(path.name)
            self.by_stem[name].append(path)
            clip = _CLIP_OF.fullmatch(name)
            youtube = clip["youtube"] if clip else name if len(name) == 11 else None
            if youtube:
                self.by_youtube[youtube].append(path)

    def find(self, listed: Listed, key: Callable[[str], str]) -> list[Path]:
        """The files that match an entry, sorted; several are copies of one video.

        Files in a folder named like the class, compared by ``key``, are preferred.
        """
        found = self.by_stem.get(listed.stem, [])
        if not found and (clip := _CLIP_OF.fullmatch(listed.stem)):
            found = [p for p in self.by_youtube.get(clip["youtube"], []) if _same_clip(stem(p.name), clip)]
        own = [p for p in found if key(p.parent.name) == key(listed.label)]
        return sorted(own or found)


def _same_clip(stem: str, wanted: "re.Match[str]") -> bool:
    """Whether a file name has the same seconds as ``wanted``, however padded, or no seconds at all."""
    clip = _CLIP_OF.fullmatch(stem)
    return clip is None or all(int(clip[part]) == int(wanted[part]) for part in ("start", "end"))
