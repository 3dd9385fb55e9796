"""The video lists that circulate for the benchmarks, read as they are, and the files that they mean.

A list says which videos belong to which class and split. Files are found by what lists have in common, the
video's name: lists differ in folders and extensions, and copies of a data set in both.

Format names are those of the code that the lists come with: ``trx`` (``trainlist03.txt``: ``folder/id``),
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
#: a class given by split and number, as in ``train24``
_LIST_ID = re.compile(r"(train|val|test)[0-9]+")
#: a YouTube id with the seconds it was cut from, ``PxhBbzBNQIQ_000002_000012``
_CLIP_OF = re.compile(r"(?P<youtube>.{11})_(?P<start>[0-9]+)_(?P<end>[0-9]+)")


@dataclass(frozen=True)
class Listed:
    """One line of a list: the video's name without extension, its class as listed, its split if said."""

    stem: str
    label: str
    split: Split | None
    where: str


@dataclass(frozen=True)
class VideoList:
    """What list files say. ``files``: which were read; ``names``: list id -> class name, if beside them."""

    format: ListFormat
    files: tuple[Path, ...]
    videos: tuple[Listed, ...]
    names: Mapping[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """Videos per split, as far as the list says."""
        found = Counter(video.split or "none" for video in self.videos)
        return {split: found[split] for split in (*_SPLITS, "none") if found[split]}

    def __str__(self) -> str:
        counts = "/".join(str(self.counts.get(split, 0)) for split in _SPLITS)
        shown = counts if "none" not in self.counts else str(self.counts["none"])
        return f"{self.format} format ({', '.join(f.name for f in self.files)}), {shown} videos"


def read_lists(folder: Path) -> VideoList:
    """Read the list files in ``folder`` (or the one file that it is); names and content tell the format.

    Raises :class:`ClipspmError` naming file and line for what is no list.
    """
    if not folder.exists():
        raise ClipspmError(f"no split files at {folder}")
    lists = _read_lists(folder)
    if not lists.videos:
        raise ClipspmError(f"{folder}: the lists there ({lists}) name no video")
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
        f"{folder} holds no list of videos that is known: trainlist03.txt and its like, train_few_shot.txt, "
        "text files of class name/id, the labels JSON of Something-Something, or a Kinetics CSV"
    )


def _split_of(name: str) -> Split | None:
    """The split that a file is about: the first of train, val, test in its name."""
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
    """Lines that say something; no character is a comment."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipspmError(f"cannot read the list {file}: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip("\r \t"):
            yield number, line.strip("\r\n")


def _parse(line: str, where: str) -> tuple[ListFormat, str, str]:
    """(format, class as listed, video name without extension) of a line."""
    if "//" in line:  # CLIP-FSAR: number of the class, then the path
        path = line.split("//", 1)[1].strip("/").split("/")
        if len(path) < 2:
            raise ClipspmError(f"{where}: {line!r}: expected test0//folders/class/video.avi")
        return "clip-fsar", path[-2], stem(path[-1])
    parts = line.strip("/").split("/")
    if len(parts) < 2 or not parts[-1].strip():
        raise ClipspmError(f"{where}: {line!r} names no video: expected class/video")
    return ("cmn" if " " in parts[-2] else "trx"), parts[-2], stem(parts[-1])


def _names_beside(documents: Iterable[Path]) -> dict[str, str]:
    """``{"train24": "Pouring something into something", ...}`` from a JSON file beside the lists."""
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
                    raise ClipspmError(f"{where}: the times are no numbers") from error
                yield Listed(f"{row['youtube_id']}_{start:06d}_{end:06d}", row["label"], None, where)


# ------------------------------------------------------------------------------------------------ files


class Files:
    """The videos below a folder, by name, or by YouTube id and times; the class's folder comes first."""

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
        """The files that a line may mean, sorted; ``key`` compares names. Several: copies of one video."""
        found = self.by_stem.get(listed.stem, [])
        if not found and (clip := _CLIP_OF.fullmatch(listed.stem)):
            found = [p for p in self.by_youtube.get(clip["youtube"], []) if _same_clip(stem(p.name), clip)]
        own = [p for p in found if key(p.parent.name) == key(listed.label)]
        return sorted(own or found)


def _same_clip(stem: str, wanted: "re.Match[str]") -> bool:
    """Whether a file is the clip wanted: the same seconds however they are padded, or no seconds at all."""
    clip = _CLIP_OF.fullmatch(stem)
    return clip is None or all(int(clip[part]) == int(wanted[part]) for part in ("start", "end"))
