"""The lists that circulate, at full size: indexed as published, whatever their format and whatever is missing."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipspm.cache import open_cache
from clipspm.cache.reader import Coverage
from clipspm.cache.transform import convert
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import ExtractConfig, extract
from clipspm.extract.datasets import benchmark, index_dataset
from clipspm.extract.lists import read_lists
from clipspm.extract.report import check
from tests.support.campaigns import tiny_config
from tests.support.media import numbered_frames, write_video

COUNTS = {
    "hmdb51": (4280, 1194, 1292),
    "ucf101": (9154, 1421, 2745),
    "kinetics100": (6400, 1200, 2400),
    "ssv2-small": (6400, 1200, 2400),
    "ssv2-full": (77500, 1926, 2857),
}
SPLITS = ("train", "val", "test")
#: as in HMDB51's names, and worse
ODD = ("", " (clap)", "#20_", "[x]", " & more!", "+1", ";", "'", "%41", " é")

#: split, folder or list id, class name, number in the split, stem of the file
Video = tuple[str, str, str, int, str]


def stems(name: str, folder: str, count: int, start: int) -> Iterator[str]:
    for i in range(count):
        if name == "kinetics100":
            yield f"{start + i:07d}-_aB_{i % 290:06d}_{i % 290 + 10:06d}"
        elif name.startswith("ssv2"):
            yield str(start + i)
        elif name == "ucf101":
            yield f"v_{folder}_g{i % 25 + 1:02d}_c{i // 25:02d}"
        else:
            yield f"{ODD[i % len(ODD)]}{folder}_{i}_u_nm_np1_fr_med_{i % 3}"


def videos_of(name: str) -> list[Video]:
    found: list[Video] = []
    for split, classes in benchmark(name).classes.items():
        for number, (folder, class_name, count) in enumerate(classes):
            own = stems(name, folder, count, len(found))
            found += [(split, folder, class_name, number, stem) for stem in own]
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file tree of a benchmark, of empty files; SSv2's lie in one folder, as they are published."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            root = made[name] = tmp_path_factory.mktemp(name)
            suffix = {"kinetics100": ".mp4", "ssv2-small": ".webm", "ssv2-full": ".webm"}.get(name, ".avi")
            for split, folder, _, _, stem in videos_of(name):
                place = root / "20bn-something-something-v2" if name.startswith("ssv2") else root / folder
                if name == "kinetics100":
                    place = root / split / folder
                place.mkdir(parents=True, exist_ok=True)
                (place / (stem + suffix)).touch()
        return made[name]

    return get


def write_lists(folder: Path, format: str, videos: list[Video]) -> None:
    folder.mkdir()
    if format == "ssv2-json":
        rows = [
            {"id": stem, "label": "x", "template": class_name.replace("something", "[something]")}
            for _, _, class_name, _, stem in videos
        ]
        rows.append({"id": "1000000", "label": "x", "template": "Not a class of any [split]"})
        (folder / "something-something-v2-train.json").write_text(json.dumps(rows))
        return
    if format == "kinetics-csv":
        with (folder / "kinetics-400_train.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
            for _, _, class_name, _, stem in videos:
                writer.writerow([class_name, stem[:11], int(stem[12:18]), int(stem[19:]), "train"])
        return
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    names: dict[str, str] = {}
    for split, folder_name, class_name, number, stem in videos:
        if format == "trx":
            lines[split].append(f"{folder_name}/{stem}")
        elif format == "trx, per split":
            names[f"{split}{number}"] = class_name
            lines[split].append(f"{split}{number}/{stem}")
        elif format == "clip-fsar":
            lines[split].append(f"{split}{number}//videos/{folder_name}/{stem}.avi")
        elif format == "clip-fsar, ids":
            names[f"{split}{number}"] = class_name
            lines[split].append(f"{split}{number}/{stem}")
        else:  # cmn
            lines[split].append(f"{class_name}/{stem}")
    for split in SPLITS:
        name = f"{split}_few_shot.txt" if format.startswith("clip-fsar") else f"{split}list03.txt"
        (folder / name).write_text("\n".join(lines[split]) + "\n")
    if names:
        (folder / "names.json").write_text(json.dumps(names))


FORMATS = {
    "hmdb51": ("folders", "trx", "clip-fsar"),
    "ucf101": ("folders", "trx", "clip-fsar"),
    "kinetics100": ("trx", "clip-fsar", "cmn", "kinetics-csv"),
    "ssv2-small": ("trx", "clip-fsar, ids", "ssv2-json"),
    "ssv2-full": ("trx", "trx, per split", "clip-fsar, ids", "ssv2-json"),
}


SLOW = {("ssv2-full", format) for format in FORMATS["ssv2-full"]}


@pytest.mark.parametrize(
    ("name", "format"),
    [
        pytest.param(n, f, marks=[pytest.mark.slow] * ((n, f) in SLOW))
        for n, fs in FORMATS.items()
        for f in fs
    ],
)
def test_every_list_at_full_size(tree: Callable[[str], Path], tmp_path: Path, name: str, format: str) -> None:
    root = tree(name)
    lists = None
    if format != "folders":
        lists = tmp_path / "lists"
        write_lists(lists, format, videos_of(name))
    index = index_dataset(name, root, split_files=lists)
    found = Counter(video.split for video in index.plan.videos)
    assert tuple(found[split] for split in SPLITS) == COUNTS[name]
    assert {(v.class_name, v.split) for v in index.plan.videos} == {
        (class_name, split) for split, _, class_name, _, _ in videos_of(name)
    }
    report = check(index, open_files=False)
    assert report.enough and not any(c.missing or c.duplicates for c in report.classes)
    totals = report.totals()
    assert tuple(totals[split]["expected"] for split in SPLITS) == COUNTS[name]
    if lists is not None:
        assert any(note.startswith("split files: ") and "format" in note for note in index.notes)
        assert not any("missing" in note or "family" in note for note in index.notes)
    if name == "ssv2-full" and format != "ssv2-json":
        assert any("77,500 videos, the longer" in note for note in index.notes)


def test_the_shorter_ssv2_list_is_recognised(tree: Callable[[str], Path], tmp_path: Path) -> None:
    videos = videos_of("ssv2-full")
    train = [v for v in videos if v[0] == "train"]
    write_lists(tmp_path / "lists", "trx", train[:67_013] + [v for v in videos if v[0] != "train"])
    index = index_dataset("ssv2-full", tree("ssv2-full"), split_files=tmp_path / "lists")
    assert any("67,013 videos, the shorter" in note for note in index.notes)


def some(name: str, per_class: int) -> list[Video]:
    kept: Counter[str] = Counter()
    chosen = []
    for video in videos_of(name):
        kept[video[2]] += 1
        if kept[video[2]] <= per_class:
            chosen.append(video)
    return chosen


def test_missing_files_are_reported_by_class_and_stamped(tmp_path: Path) -> None:
    videos = some("kinetics100", 8)
    write_lists(tmp_path / "lists", "cmn", videos)
    for i, (_, folder, _, _, stem) in enumerate(videos):
        if i % 8 == 0:
            continue  # never downloaded
        path = tmp_path / "v" / folder / (f"{stem[:11]}.mp4" if i % 8 == 1 else f"{stem}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if i % 8 == 2:
            path.with_suffix(".mkv").touch()  # a copy
    index = index_dataset("kinetics100", tmp_path / "v", split_files=tmp_path / "lists")
    assert len(index.plan.videos) == 700
    assert any("100 of 800 listed videos are missing" in note for note in index.notes)
    report = check(index, needed=7, open_files=False)
    assert report.enough and {(c.expected, c.found, c.missing, c.duplicates) for c in report.classes} == {
        (8, 7, 1, 1)
    }
    assert not check(index, needed=8, open_files=False).enough
    opened = check(index, workers=2)
    assert all(c.unreadable == 7 and c.usable == 0 for c in opened.classes)  # they are empty
    assert len(opened.problems) == 700 and not opened.enough
    assert json.loads(json.dumps(opened.to_json()))["splits"]["train"]["missing"] == 64


def test_another_family_is_recognised_by_its_classes(tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for split, name in (("train", "air drumming"), ("val", "shearing sheep"), ("test", "zumba")):
        (lists / f"{split}.txt").write_text(
            f"{name}/abcdefghijk_000001_000011\n{name}/bbcdefghijk_000001_000011\n"
        )
    for stem in ("abcdefghijk_000001_000011", "bbcdefghijk_000001_000011"):
        (tmp_path / "v" / "zumba").mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / "zumba" / f"{stem}.mp4").touch()
    index = index_dataset("kinetics100", tmp_path / "v", split_files=lists)
    assert any(note.startswith("not the published split of kinetics100") for note in index.notes)


def test_a_name_is_not_taken_from_the_folder_of_another_class(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "trainlist03.txt").write_text("brush_hair/1\ncartwheel/1\n")
    (tmp_path / "v" / "brush_hair").mkdir(parents=True)
    (tmp_path / "v" / "brush_hair" / "1.avi").touch()
    (video,) = index_dataset("hmdb51", tmp_path / "v", split_files=tmp_path / "lists").plan.videos
    assert (video.path, video.class_name) == ("brush_hair/1.avi", "brush hair")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trainlist03.txt", "no video here\n", "line 1: 'no video here' names no video"),
        ("train_few_shot.txt", "test0//x.avi\n", r"line 1.*expected test0//folders/class/video.avi"),
        ("trainlist03.txt", "\n\n", "no videos are listed"),
        ("kinetics.csv", "label,youtube_id\na,b\n", "lacks the column 'time_end'"),
        (
            "kinetics.csv",
            "label,youtube_id,time_start,time_end\na,b,c,d\n",
            "line 2: time_start and time_end must be numbers",
        ),
        ("kinetics.csv", "label,youtube_id,time_start,time_end\n", "contain no videos"),
        ("labels.json", '[{"id": 1, "template": "x"}, {"id": 2}]', "entry 2: expected id and template"),
        ("notes.md", "hello", "holds no list of videos in a known format"),
        ("train_few_shot.txt", "\xff\xfe", "cannot read the list|names no video"),
    ],
)
def test_what_is_no_list_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ClipspmError, match=message) as caught:
        read_lists(tmp_path)
    assert "\n" not in str(caught.value)


def test_lists_are_for_benchmarks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--split-files is for the benchmarks"):
        index_dataset("folder", tmp_path, split_files=tmp_path)


NAME = st.text(
    st.characters(blacklist_characters="/\n\r\x00", blacklist_categories=("Cs",)), min_size=1
).filter(
    lambda text: (
        text.strip(" \t") == text and text.strip("/") == text and "//" not in text and text.strip() != ""
    )
)


@given(st.lists(st.tuples(NAME, NAME), min_size=1, max_size=8))
def test_any_name_comes_through(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    (folder / "testlist03.txt").write_text("".join(f"{c}/{v}\n" for c, v in rows), "utf-8", newline="\n")
    found = read_lists(folder).videos
    assert [video.label for video in found] == [c for c, _ in rows]
    assert all(v.startswith(video.stem) for video, (_, v) in zip(found, rows, strict=True))


def test_classes_without_a_video_count_as_missing(tmp_path: Path) -> None:
    """In what is checked before, and in the coverage of results after."""
    clip = write_video(tmp_path / "clip.mp4", numbered_frames(6, 32, 32))
    about = benchmark("hmdb51")
    for split in SPLITS:
        for folder, _, _ in about.classes[split][:2]:  # type: ignore[index]
            for i in range(3):
                path = tmp_path / "v" / folder / f"{i}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.hardlink_to(clip)
    config: ExtractConfig = tiny_config(tmp_path, tmp_path / "v", dataset="hmdb51", frames=2)
    report = check(index_dataset("hmdb51", tmp_path / "v"), needed=3, open_files=False)
    assert len(report.classes) == 51 and len(report.too_few) == 45 and not report.enough
    path = extract(replace(config, out=tmp_path / "c.zarr")).path
    converted = convert(path, tmp_path / "d.h5")
    for cache in (open_cache(path), open_cache(converted)):
        assert len(cache.class_names) == 6 and len(cache.text()) == 6
        assert cache.coverage("test") == Coverage(1292, 6)
        assert cache.coverage("train") == Coverage(4280, 6)
    assert extract(replace(config, out=tmp_path / "c.zarr")).done == 0


@pytest.mark.parametrize("name", COUNTS)
def test_a_small_copy_of_each_benchmark_is_extracted(tmp_path: Path, name: str) -> None:
    clip = write_video(tmp_path / "clip.mp4", numbered_frames(6, 32, 32))
    videos = some(name, 3)
    for _, folder, _, _, stem in videos:
        path = tmp_path / "v" / folder / f"{stem}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(clip)
    write_lists(tmp_path / "lists", FORMATS[name][-2], videos)
    config: ExtractConfig = tiny_config(tmp_path, tmp_path / "v", dataset=name, frames=2, shard_size=256)
    result = extract(replace(config, split_files=tmp_path / "lists", out=tmp_path / "c.zarr"))
    cache = open_cache(result.path)
    assert result.done == len(videos) and not result.failures
    for split in SPLITS:
        assert cache.coverage(split).complete  # type: ignore[arg-type]
