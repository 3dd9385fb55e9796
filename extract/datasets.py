"""Find the videos of a data set, with their classes and splits.

Every data set becomes an :class:`Index` of planned videos, sorted by split, class and path, so that it does
not depend on the order of the files on disk. File names are not used as glob patterns: they may hold
``( ) [ ] # & ! + ;``.
"""

import csv
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

from clipspm.cache.disk import check_size, reading
from clipspm.cache.home import demo_dir
from clipspm.cache.spec import SPLITS, Plan, Split, VideoRecord
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.class_names import key_of, matched, without_duplicates
from clipspm.extract.lists import Files, VideoList, read_lists, without_brackets
from clipspm.extract.suffixes import is_frame_name, is_video_name, stem

Benchmark = Literal["hmdb51", "ucf101", "kinetics100", "ssv2-full", "ssv2-small"]
BENCHMARKS: tuple[str, ...] = get_args(Benchmark)
#: the worlds of the demo
DEMOS: tuple[str, ...] = ("demo", "demo-look", "demo-both", "demo-told", "demo-lied")
DATASETS: tuple[str, ...] = (*BENCHMARKS, "folder", "manifest", *DEMOS)

#: data sets in which mirroring a clip changes its class
NO_FLIP = frozenset({"ssv2-full", "ssv2-small", *DEMOS})


@dataclass(frozen=True)
class BenchmarkClasses:
    """A benchmark's classes as published: per split, (folder or list id, class name, videos)."""

    name: str
    about: str
    home: str
    layout: str
    classes: dict[Split, list[tuple[str, str, int]]]


@dataclass(frozen=True)
class Index:
    """The videos found under ``root``; ``notes``: warnings for the user.

    ``copies``: by class, files that are further copies of a video in the plan.
    """

    dataset: str
    root: Path
    plan: Plan
    notes: tuple[str, ...] = field(default=())
    copies: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)


def benchmark(name: str) -> BenchmarkClasses:
    """The published classes of one of the five benchmarks."""
    raw = json.loads((resources.files("clipspm.extract") / "splits" / f"{name}.json").read_text())
    splits: tuple[Split, ...] = ("train", "val", "test")
    return BenchmarkClasses(
        raw["dataset"],
        raw["about"],
        raw["home"],
        raw["layout"],
        {s: [(f, c, n) for f, c, n in raw[s]] for s in splits},
    )


def check_name(dataset: str) -> None:
    """Raise :class:`UsageError`, suggesting the closest name, if ``dataset`` is unknown."""
    if dataset not in DATASETS:
        close = get_close_matches(dataset, DATASETS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"unknown data set {dataset!r}: {hint}Choose one of {', '.join(DATASETS)}")


def index_dataset(
    dataset: str, videos: Path | None = None, splits: Path | None = None, split_files: Path | None = None
) -> Index:
    """Find the videos of a data set.

    ``videos`` defaults to ``$CLIPSPM_DATA/<dataset>``, then ``./data/<dataset>``; for ``manifest`` it is
    the CSV file. ``splits`` (JSON or TOML, ``{"train": [class, ...], "val": [...], "test": [...]}``)
    replaces the data set's own split. ``split_files``: a folder of published video lists (:mod:`.lists`),
    which then define the videos of a benchmark. Raises :class:`ClipspmError` if nothing is found.
    """
    check_name(dataset)
    if dataset in DEMOS:
        root = videos or demo_videos(dataset)
        if not root.is_dir():
            raise ClipspmError(
                f"no demo videos at {root}: `clipspm demo` or `clipspm extract --dataset {dataset}` renders "
                "them"
            )
        return index_demo(root, [path for path, _, _ in _index_folder(root)[0]], splits, dataset)
    root = _locate(dataset, videos)
    if split_files is not None:
        if dataset not in BENCHMARKS:
            raise UsageError(f"--split-files is for the benchmarks; --dataset {dataset} takes --splits")
        return _index_listed(benchmark(dataset), root, read_lists(split_files), splits)
    if dataset == "manifest":
        return _make_index(dataset, root.parent, _read_manifest(root), (), splits)
    if dataset == "folder":
        return _make_index(dataset, root, *_index_folder(root), splits)
    about = benchmark(dataset)
    rows, notes, copies = _index_benchmark(about, root)
    expected = {name: count for listed in about.classes.values() for _, name, count in listed}
    homes = {name: split for split, listed in about.classes.items() for _, name, _ in listed}
    return _make_index(dataset, root, rows, notes, splits, expected, copies, homes)


def demo_videos(dataset: str) -> Path:
    """Where the videos of one of :data:`DEMOS` are by default."""
    from clipspm.extract.demo import world_of

    return world_of(dataset).videos(demo_dir())


def index_demo(root: Path, files: Iterable[Path], splits: Path | None = None, dataset: str = "demo") -> Index:
    """Index a world's videos, ``root/<class folder>/<clip>``, which need not be rendered yet."""
    from clipspm.extract.demo import world_of

    world = world_of(dataset)
    split_of = {folder: split for split, folders in world.splits[0].items() for folder in folders}
    rows: list[Row] = [
        (
            path,
            world.names.get(path.parent.name, _display_name(path.parent.name)),
            cast(Split, split_of.get(path.parent.name, "none")),
        )
        for path in files
    ]
    return _make_index(dataset, root, rows, (), splits)


# --------------------------------------------------------------------------------------------- where


def _locate(dataset: str, videos: Path | None) -> Path:
    if videos is not None:
        places = [videos]
    else:
        data = os.environ.get("CLIPSPM_DATA")
        places = [Path(data) / dataset] if data else []
        places.append(Path("data") / dataset)
    for place in places:
        if place.exists():
            if dataset == "manifest" and not place.is_file():
                raise ClipspmError(f"{place} is a folder: --dataset manifest takes a CSV file with --videos")
            if dataset != "manifest" and not place.is_dir():
                raise ClipspmError(f"{place} is not a folder: --videos takes the folder of classes")
            return place
    if videos is not None:
        found = f"--videos {videos} does not exist"
    else:
        found = f"no videos for {dataset}: looked at {' and '.join(str(place) for place in places)}"
    if dataset in BENCHMARKS:
        about = benchmark(dataset)
        expected = f"expected {about.layout}; the data set is published at {about.home}"
    elif dataset == "manifest":
        expected = "expected a CSV file with the columns path, class, split"
    else:
        expected = "expected one folder per class, each holding video files or folders of frames"
    raise ClipspmError(f"{found}; {expected}" + ("" if videos else ". Name the place with --videos"))


# --------------------------------------------------------------------------------------------- folders

Row = tuple[Path, str, Split]


def _index_folder(root: Path) -> tuple[list[Row], tuple[str, ...]]:
    """The videos in class folders under ``root`` or its ``train``, ``val`` and ``test``, and notes."""
    folders = _subfolders(root)
    above = [f for f in folders if f.name in ("train", "val", "test")]
    if above and len(above) == len(folders):
        parts: list[tuple[Path, Split]] = [(folder, cast(Split, folder.name)) for folder in above]
    else:
        parts = [(root, "none")]
    rows: list[Row] = []
    loose: list[Path] = []
    spelt: dict[str, set[str]] = {}
    for part, split in parts:
        loose += [file for file in _entries(part) if is_video_name(file.name) and not file.is_dir()]
        for folder in _subfolders(part):
            name = _display_name(folder.name)
            found = _videos_in(folder)
            rows += [(path, name, split) for path in found]
            if found:
                spelt.setdefault(name, set()).add(folder.name)
    if not rows:
        raise ClipspmError(
            f"no videos under {root}: {_advice_on_loose(loose)}"
            if loose
            else f"no videos under {root}: expected one folder per class, each holding video files "
            "(.mp4, .avi, .mkv, .webm, ...) or folders of frames"
        )
    notes = [f"left out: {_advice_on_loose(loose)}"] if loose else []
    notes += [
        f"the folders {_quoted(folders)} are treated as one class, {name!r}: rename one if they are not"
        for name, folders in sorted(spelt.items())
        if len(folders) > 1
    ]
    return rows, tuple(notes)


def _advice_on_loose(loose: list[Path]) -> str:
    """Advice for video files that lie beside the class folders instead of in them."""
    first = loose[0]
    word = re.match(r"[^\W\d_]{2,}(?:[ _-]+[^\W\d_]{2,})*", first.stem)
    where = first.parent.name
    target = f"{where}/{word.group() if word else 'CLASS'}/{first.name}"
    files = "1 video file lies" if len(loose) == 1 else f"{len(loose)} video files lie"
    return (
        f"{files} directly in {first.parent}, not in a folder per class: move each into the folder of its "
        f"class, for example {where}/{first.name} -> {target}"
    )


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(repr(name) for name in sorted(names))


def _display_name(folder: str) -> str:
    return folder.replace("_", " ").strip() or folder


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted, without hidden ones."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise ClipspmError(f"cannot list {folder}: {error.strerror}") from error


def _subfolders(root: Path) -> list[Path]:
    return [entry for entry in _entries(root) if entry.is_dir()]


def _videos_in(folder: Path) -> list[Path]:
    """Video files, and folders that hold images, directly inside a class folder."""
    return [
        entry
        for entry in _entries(folder)
        if (_holds_images(entry) if entry.is_dir() else is_video_name(entry.name))
    ]


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_frame_name(e.name) for e in entries)


def _index_benchmark(
    about: BenchmarkClasses, root: Path
) -> tuple[list[Row], tuple[str, ...], dict[str, tuple[Path, ...]]]:
    """The videos in a benchmark's class folders, notes, and further copies of videos by class.

    Case and separators of folder names are ignored.
    """
    folders: dict[str, list[Path]] = {}
    for each in _subfolders(root):
        folders.setdefault(key_of(each.name), []).append(each)
    rows: list[Row] = []
    copies: dict[str, tuple[Path, ...]] = {}
    absent: list[str] = []
    fewer = 0
    for split, classes in about.classes.items():
        for folder_name, class_name, expected in classes:
            here = folders.get(key_of(folder_name)) or folders.get(key_of(class_name)) or []
            every = [video for folder in here for video in _videos_in(folder)]
            by_name: dict[str, Path] = {}
            for video in every:
                by_name.setdefault(video.name if video.is_dir() else video.stem, video)
            videos = list(by_name.values())
            kept = set(videos)
            if len(kept) < len(every):
                copies[class_name] = tuple(video for video in every if video not in kept)
            if not videos:
                absent.append(class_name)
            fewer += max(0, expected - len(videos))
            rows += [(path, class_name, split) for path in videos]
    total = sum(len(c) for c in about.classes.values())
    if not rows:
        loose = [file for file in _entries(root) if is_video_name(file.name) and not file.is_dir()]
        raise ClipspmError(
            f"no class folder of {about.name} under {root}: expected {about.layout}; "
            + (_advice_on_loose(loose) if loose else f"the data set is published at {about.home}")
        )
    notes = []
    if absent:
        notes.append(f"{len(absent)} of {total} classes have no videos, for example {', '.join(absent[:3])}")
    if fewer:
        notes.append(f"{fewer} videos fewer than published: results state the coverage")
    return rows, tuple(notes), copies


def _index_listed(about: BenchmarkClasses, root: Path, lists: VideoList, splits_file: Path | None) -> Index:
    """Index the videos named in ``lists``, wherever they are under ``root``."""
    by_key: dict[str, tuple[str, Split]] = {}
    for split, classes in about.classes.items():
        for folder, name, _ in classes:
            by_key[key_of(folder)] = by_key[key_of(name)] = (name, split)
    names = {key: without_brackets(name) for key, name in lists.names.items()}
    files = Files(all_videos(root))
    rows: list[Row] = []
    copies: dict[str, list[Path]] = {}
    expected: Counter[str] = Counter()
    homes: dict[str, Split] = {}
    taken: set[Path] = set()
    seen: set[tuple[str, str]] = set()
    twice = outside = 0
    for video in lists.videos:
        label = names.get(video.label, video.label)
        name, home = by_key.get(key_of(label), (without_brackets(_display_name(label)), None))
        found_split = video.split or home
        if found_split is None:
            outside += 1
            continue
        if (name, video.stem) in seen:
            twice += 1
            continue
        seen.add((name, video.stem))
        expected[name] += 1
        homes.setdefault(name, found_split)
        found = [
            path
            for path in files.find(video, key_of)
            if path not in taken and by_key.get(key_of(path.parent.name), (name, None))[0] == name
        ]
        if found:
            taken.add(found[0])
            rows.append((found[0], name, found_split))
            copies.setdefault(name, []).extend(found[1:])
    if not rows:
        first = lists.videos[0]
        raise ClipspmError(
            f"none of the {len(lists.videos)} videos listed in {lists.files[0].parent} is under {root}, for "
            f"example {first.label}/{first.stem} ({first.where})"
        )
    missing = sum(expected.values()) - len(rows)
    notes = [f"split files: {lists}", *_describe_lists(about, lists, expected)]
    if missing:
        listed = sum(expected.values())
        notes.append(f"{missing} of {listed} listed videos are missing: results state the coverage")
    if twice:
        notes.append(f"{twice} lines repeat a video and count once")
    if outside:
        notes.append(f"{outside} listed videos belong to classes without a split and are left out")
    plain = {name: tuple(paths) for name, paths in copies.items() if paths}
    return _make_index(about.name, root, rows, tuple(notes), splits_file, expected, plain, homes)


def _describe_lists(about: BenchmarkClasses, lists: VideoList, expected: Mapping[str, int]) -> list[str]:
    """A note on which published lists these are, judged by their classes and counts."""
    published = {name for classes in about.classes.values() for _, name, _ in classes}
    others = sorted(set(expected) - published)
    if others:
        return [
            f"not the published split of {about.name}: {len(others)} of {len(expected)} classes are not in "
            f"it, for example {others[0]!r}"
        ]
    if about.name == "ssv2-full" and lists.counts.get("train") == 67_013:
        return ["the training list with 67,013 videos, the shorter of the two in circulation"]
    if about.name == "ssv2-full" and lists.counts.get("train") == 77_500:
        return ["the training list with 77,500 videos, the longer of the two in circulation"]
    counts = {s: sum(n for _, _, n in classes) for s, classes in about.classes.items()}
    differ = [s for s, n in lists.counts.items() if s in counts and n != counts[cast(Split, s)]]
    return [f"counts differ from the published ones ({', '.join(differ)})"] if differ else []


def all_videos(root: Path) -> list[Path]:
    """Video files, and folders that hold images, under ``root``; each folder once, even if it is linked."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = sorted(name for name in names if is_video_name(name))
        if not here and any(is_frame_name(name) for name in names):
            found.append(Path(place))
        found += [Path(place, name) for name in here]
    return found


# --------------------------------------------------------------------------------------------- manifest


def _read_manifest(path: Path) -> list[Row]:
    """Read a CSV file with columns path, class and maybe split; paths are relative to the CSV's folder."""
    rows: list[Row] = []
    with reading(path, "is not a readable CSV file"):
        check_size(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or ())
            if twice := [name for name in names if names.count(name) > 1]:
                raise ClipspmError(f"{path} has the column {twice[0]!r} twice")
            missing = {"path", "class"} - set(names)
            if missing:
                raise ClipspmError(
                    f"{path} lacks the column {sorted(missing)[0]!r}: a manifest has path, class "
                    "and, if it is known, split"
                )
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if not row["path"] or not row["class"]:
                    raise ClipspmError(f"{where}: path and class must not be empty")
                split = (row.get("split") or "none").strip()
                if split not in SPLITS:
                    raise ClipspmError(f"{where}: split {split!r} is not train, val, test or none")
                rows.append((path.parent / row["path"], row["class"], cast(Split, split)))
    if not rows:
        raise ClipspmError(f"{path} lists no videos")
    return rows


# --------------------------------------------------------------------------------------------- splits


#: the largest file of class splits that is read (bytes)
_MOST_SPLITS = 2**24


def read_splits(path: Path) -> dict[str, Split]:
    """Read class splits from a JSON or TOML file: class name -> split. Raises :class:`ClipspmError`."""
    with reading(path):
        check_size(path, _MOST_SPLITS)
        text = path.read_text(encoding="utf-8")
    is_toml = path.suffix.lower() == ".toml"
    with reading(path, f"is not valid {'TOML' if is_toml else 'JSON'}"):
        raw: Any = tomllib.loads(text) if is_toml else json.loads(text, object_pairs_hook=without_duplicates)
    form = '{"train": [class, ...], "val": [...], "test": [...]}'
    if not isinstance(raw, dict) or not raw:
        raise ClipspmError(f"{path} must hold {form}")
    found: dict[str, Split] = {}
    for split, names in raw.items():
        if split not in ("train", "val", "test"):
            raise ClipspmError(f"{path}: unknown split {split!r}; the form is {form}")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ClipspmError(f"{path}: {split!r} must be a list of class names")
        for name in names:
            if name in found:
                raise ClipspmError(f"{path}: class {name!r} is in both {found[name]!r} and {split!r}")
            found[name] = cast(Split, split)
    return found


def apply_splits(class_names: Iterable[str], wanted: Mapping[str, Split], source: Path) -> dict[str, Split]:
    """The split of every class in ``class_names``, ``none`` if ``wanted`` does not name it.

    Names that differ only in case and separators match if that is unambiguous. Raises :class:`ClipspmError`
    for ambiguous and unknown names; ``source`` is the file named in the message.
    """
    names = list(class_names)
    splits: dict[str, Split] = dict.fromkeys(names, "none")
    for name, match in matched(names, wanted, source).items():
        if match is None:
            raise ClipspmError(
                f"{source}: class {name!r} has no videos; the classes found are {', '.join(names[:8])}"
                + (", ..." if len(names) > 8 else "")
            )
        splits[match] = wanted[name]
    return splits


def _make_index(
    dataset: str,
    root: Path,
    rows: list[Row],
    notes: tuple[str, ...],
    splits_file: Path | None = None,
    expected: Mapping[str, int] | None = None,
    copies: Mapping[str, tuple[Path, ...]] | None = None,
    homes: Mapping[str, Split] | None = None,
) -> Index:
    """Sort the rows, give them ids and splits, and make the index.

    Raises :class:`ClipspmError` for a class in two splits, which would leak test classes, and for a video
    listed twice.
    """
    by_class: dict[str, Split] = {}
    for path, name, split in rows:
        if by_class.setdefault(name, split) != split:
            raise ClipspmError(
                f"class {name!r} is in both {by_class[name]!r} and {split!r} (at {path}): in few-shot "
                "learning a class belongs to one split"
            )
    if splits_file is not None:
        by_class = apply_splits(sorted(by_class), read_splits(splits_file), splits_file)
    order = {split: i for i, split in enumerate(SPLITS)}
    names = sorted(by_class, key=lambda name: (order[by_class[name]], name))
    relative = [(_relative(path, root), name) for path, name, _ in rows]
    relative.sort(key=lambda row: (order[by_class[row[1]]], row[1], row[0]))
    ids = [_video_id(dataset, root, place, name) for place, name in relative]
    times = Counter(ids)
    videos = [
        VideoRecord(video if times[video] == 1 else place, place, name, by_class[name])
        for video, (place, name) in zip(ids, relative, strict=True)
    ]
    repeated = [key for key, n in Counter(v.id for v in videos).items() if n > 1]
    if repeated:
        raise ClipspmError(f"{root}: the video {repeated[0]!r} is listed twice")
    found = Counter(video.class_name for video in videos)
    counts = {name: max((expected or {}).get(name, 0), found[name]) for name in names}
    # with a splits file, the split of an absent class is unknown
    absent = (
        ()
        if splits_file
        else tuple(
            (name, home, (expected or {})[name])
            for name, home in sorted((homes or {}).items())
            if name not in found
        )
    )
    plan = Plan(tuple(videos), tuple(names), {name: by_class[name] for name in names}, counts, absent)
    return Index(dataset, root, plan, (*notes, *_warnings(plan)), copies or {})


def _warnings(plan: Plan) -> list[str]:
    """Notes on what would cause problems in training."""
    names = plan.class_names
    notes = []
    if len(names) == 1:
        notes.append(f"there is only one class, {names[0]!r}: few-shot episodes need several")
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(key_of(name) or name, []).append(name)
    notes += [
        f"the classes {_quoted(same)} differ in case or separators only: rename them if they are one class"
        for same in alike.values()
        if len(same) > 1
    ]
    if all(split == "none" for split in plan.class_splits.values()):
        notes.append(
            "no class split is known: train-heads will need one. Give a file with --splits FILE, like "
            '{"train": [class, ...], "val": [...], "test": [...]}'
        )
    return notes


def _video_id(dataset: str, root: Path, place: str, class_name: str) -> str:
    """The id of the video at ``place``, its path relative to ``root``: that path without extension.

    In benchmarks, class and file name, so that ids (and episodes, which refer to them) are equal for copies
    of the data set with different folders. The folder of frames ``clip.v2`` and the file ``clip.v2.mp4`` are
    the same video.
    """
    name, bare = stem(place), os.path.splitext(place)[0]
    if name == place != bare and not (root / place).is_dir():
        name = bare
    return f"{class_name}/{os.path.basename(name)}" if dataset in BENCHMARKS else name


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()
