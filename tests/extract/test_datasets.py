"""What is indexed: the published classes, folders as people have them, splits without leaks."""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.datasets import BENCHMARKS, all_videos, benchmark, index_dataset, read_splits
from clipspm.extract.decode import count_frames, read_frames
from clipspm.extract.report import check

PUBLISHED = {
    "hmdb51": ((31, 10, 10), (4280, 1194, 1292)),
    "ucf101": ((70, 10, 21), (9154, 1421, 2745)),
    "kinetics100": ((64, 12, 24), (6400, 1200, 2400)),
    "ssv2-full": ((64, 12, 24), (77500, 1926, 2857)),
    "ssv2-small": ((64, 12, 24), (6400, 1200, 2400)),
}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_counts(name: str) -> None:
    classes = benchmark(name).classes
    sizes = tuple(len(classes[s]) for s in ("train", "val", "test"))
    videos = tuple(sum(n for _, _, n in classes[s]) for s in ("train", "val", "test"))
    assert (sizes, videos) == PUBLISHED[name]
    names = [c for rows in classes.values() for _, c, _ in rows]
    assert len(set(names)) == len(names)
    assert not any(ch in name for name in names for ch in "[]_")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_classes_equal_the_shared_splits(shared_dir: Path, name: str) -> None:
    raw = json.loads((shared_dir / "splits" / f"{name}.json").read_text())["classes"]
    for split, rows in benchmark(name).classes.items():
        expected = [(r.get("folder") or r["list_id"], r["name"], r["videos"]) for r in raw[split]]
        assert rows == expected


def test_hmdb51_file_names_with_everything_in_them(tmp_path: Path) -> None:
    hostile = "#20_Rhythm_(clap)_u_nm_np1_fr_goo_0 & more! [x]; +1.avi"
    touch(tmp_path, f"brush_hair/{hostile}", "Draw_Sword/a.avi", "draw_sword/.hidden.avi", "wave/readme.txt")
    index = index_dataset("hmdb51", tmp_path)
    assert {(v.path, v.class_name, v.split) for v in index.plan.videos} >= {
        (f"brush_hair/{hostile}", "brush hair", "train")
    }
    assert any("classes have no videos" in note for note in index.notes)


@pytest.mark.parametrize("folder", ["HandstandPushups", "HandStandPushups", "handstand_pushups"])
def test_ucf101_folders_in_any_case(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}/v_1.avi")
    (video,) = index_dataset("ucf101", tmp_path).plan.videos
    assert video.class_name == "Handstand Pushups"


@pytest.mark.parametrize("folder", ["train24", "Pouring something into something"])
def test_ssv2_folders_by_id_or_label(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}/1.webm")
    (video,) = index_dataset("ssv2-small", tmp_path).plan.videos
    assert (video.class_name, video.split) == ("Pouring something into something", "train")


def test_folder_with_splits_above_and_frame_directories(tmp_path: Path) -> None:
    touch(
        tmp_path, "train/wave_hand/a.mp4", "val/run/b.webm", "test/jump/clip1/0001.jpg", "test/jump/notes.txt"
    )
    index = index_dataset("folder", tmp_path)
    assert [(v.id, v.class_name, v.split) for v in index.plan.videos] == [
        ("train/wave_hand/a", "wave hand", "train"),
        ("val/run/b", "run", "val"),
        ("test/jump/clip1", "jump", "test"),
    ]


@pytest.mark.parametrize("form", ["json", "toml"])
def test_splits_file(tmp_path: Path, form: str) -> None:
    touch(tmp_path / "v", "a/1.mp4", "b/1.mp4", "c/1.mp4", "d/1.mp4")
    splits = {"train": ["a", "B"], "val": ["c"]}
    text = json.dumps(splits) if form == "json" else 'train = ["a", "B"]\nval = ["c"]\n'
    path = tmp_path / f"s.{form}"
    path.write_text(text)
    index = index_dataset("folder", tmp_path / "v", path)
    assert index.plan.class_splits == {"a": "train", "b": "train", "c": "val", "d": "none"}
    assert index.plan.class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": ["nope"]}', "'nope' has no videos"),
        ('{"train": ["a"], "test": ["a"]}', "'a' is in both 'train' and 'test'"),
        ('{"training": ["a"]}', "unknown split 'training'"),
        ('{"train": "a"}', "must be a list"),
        ("{", "is not valid JSON"),
        ('{"train": ["a"], "train": []}', "'train' occurs 2 times"),
        ('{"train": ["A"], "test": ["a"]}', "class 'A' has no videos"),
        ('{"train": ["B", "b."], "test": ["a"]}', "'B' and 'b.' are both class 'b'"),
        ('{"train": ["***"], "test": ["a"]}', r"'\*\*\*' has no videos"),
        ("[" * 100_000, "nested too deeply|is not valid JSON"),
        ("[]", "must hold"),
    ],
)
def test_wrong_splits_files(tmp_path: Path, content: str, message: str) -> None:
    touch(tmp_path / "v", "a/1.mp4", "b/1.mp4")
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(ClipspmError, match=message) as caught:
        index_dataset("folder", tmp_path / "v", path)
    assert "\n" not in str(caught.value)


def test_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('path,class,split\n"x/a,1.mp4",wave,train\ny.mp4,run,test\n')
    index = index_dataset("manifest", tmp_path / "m.csv")
    assert [(v.path, v.class_name, v.split) for v in index.plan.videos] == [
        ("x/a,1.mp4", "wave", "train"),
        ("y.mp4", "run", "test"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na,b\n", "lacks the column 'class'"),
        ("path,class,split\na,b,dev\n", "line 2: split 'dev'"),
        ("path,class,split\na,b,train\nc,b,test\n", "'b' is in both 'train' and 'test'"),
        ("path,class,split\na.mp4,b,train\na.mp4,b,train\n", "listed twice"),
        ("path,class,split\n", "lists no videos"),
    ],
)
def test_wrong_manifests(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ClipspmError, match=message):
        index_dataset("manifest", tmp_path / "m.csv")


def test_where_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPSPM_DATA", "elsewhere")
    with pytest.raises(ClipspmError) as caught:
        index_dataset("hmdb51")
    for part in ("elsewhere/hmdb51", "data/hmdb51", "one folder per class", "https://", "--videos"):
        assert part in str(caught.value)
    touch(tmp_path, "data/hmdb51/wave/a.avi")
    assert len(index_dataset("hmdb51").plan.videos) == 1
    touch(tmp_path, "elsewhere/hmdb51/wave/a.avi", "elsewhere/hmdb51/wave/b.avi")
    assert len(index_dataset("hmdb51").plan.videos) == 2


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(stems=st.lists(names, min_size=1, max_size=8, unique_by=str.casefold), data=st.data())
def test_any_file_name_is_indexed_once_whatever_the_order(tmp_path_factory, stems, data) -> None:  # type: ignore[no-untyped-def]
    plans = []
    for order in (stems, data.draw(st.permutations(stems))):
        root = tmp_path_factory.mktemp("any")
        touch(root, *(f"wave/v{stem}.mp4" for stem in order))
        plans.append(index_dataset("folder", root).plan)
    assert plans[0] == plans[1]
    assert sorted(v.path for v in plans[0].videos) == sorted(f"wave/v{stem}.mp4" for stem in stems)
    assert len({v.id for v in plans[0].videos}) == len(stems)


def test_equal_stems_keep_apart(tmp_path: Path) -> None:
    touch(tmp_path, "wave/a.mp4", "wave/a.avi")
    assert sorted(v.id for v in index_dataset("folder", tmp_path).plan.videos) == ["wave/a.avi", "wave/a.mp4"]


def test_copies_of_a_benchmarks_video_count_once(tmp_path: Path) -> None:
    touch(
        tmp_path, "brush_hair/a.avi", "brush_hair/a.mp4", "Brush Hair/a.avi", "Brush Hair/b.avi", "run/c.avi"
    )
    index = index_dataset("hmdb51", tmp_path)
    assert [(v.id, v.path) for v in index.plan.videos if v.class_name == "brush hair"] == [
        ("brush hair/a", "Brush Hair/a.avi"),
        ("brush hair/b", "Brush Hair/b.avi"),
    ]
    report = next(c for c in check(index, open_files=False).classes if c.name == "brush hair")
    assert (report.found, report.duplicates, report.usable) == (2, 2, 2)
    assert report.missing == report.expected - 2


def test_checking_takes_workers_and_paths_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "wave/a.mp4")
    with pytest.raises(UsageError, match="workers is -1"):
        check(index_dataset("folder", tmp_path), workers=-1)
    (tmp_path / "list.csv").write_text('path,class,split\n"a\0b.mp4",wave,train\n')
    report = check(index_dataset("manifest", tmp_path / "list.csv"), workers=1)
    assert report.problems[0][1] == "unreadable" and "null" in report.problems[0][2]


def test_read_splits_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ClipspmError, match="cannot read .*none.json: No such file"):
        read_splits(tmp_path / "none.json")


# ------------------------------------------------------------------------------------- what is said of them


def said(root: Path, dataset: str = "folder") -> str:
    return "\n".join(index_dataset(dataset, root).notes)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("wave1.mp4", "clips/wave/wave1.mp4"),
        ("shake_hands_03.avi", "clips/shake_hands/shake_hands_03.avi"),
        ("0001.mp4", "clips/CLASS/0001.mp4"),
    ],
)
@pytest.mark.parametrize("dataset", ["folder", "hmdb51"])
def test_videos_outside_class_folders_explain_the_layout(
    tmp_path: Path, dataset: str, name: str, target: str
) -> None:
    touch(tmp_path / "clips", name, "x.txt")
    with pytest.raises(ClipspmError) as caught:
        index_dataset(dataset, tmp_path / "clips")
    assert f"clips/{name} -> {target}" in str(caught.value) and "\n" not in str(caught.value)
    assert "1 video file lies directly in" in str(caught.value)


def test_videos_beside_class_folders_are_said_to_be_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "c", "wave/1.mp4", "run/1.mp4", "run2.mp4", "run3.mp4")
    assert "left out: 2 video files lie directly in" in said(tmp_path / "c")
    assert "c/run2.mp4 -> c/run/run2.mp4" in said(tmp_path / "c")
    touch(tmp_path / "d", "train/run2.mp4", "train/.hidden.mp4")
    with pytest.raises(ClipspmError, match=r"train/run2.mp4 -> train/run/run2.mp4"):
        index_dataset("folder", tmp_path / "d")


def test_one_class_and_no_split_are_said_before_they_matter(tmp_path: Path) -> None:
    touch(tmp_path / "one", "wave/1.mp4")
    assert "only one class, 'wave'" in said(tmp_path / "one")
    assert "no class split is known" in said(tmp_path / "one") and "--splits FILE" in said(tmp_path / "one")
    touch(tmp_path / "split", "train/wave/1.mp4", "test/run/1.mp4")
    assert said(tmp_path / "split") == ""
    (tmp_path / "m.csv").write_text("path,class,split\na.mp4,wave,\nb.mp4,run,\n")
    assert "no class split is known" in said(tmp_path / "m.csv", "manifest")


def test_class_names_that_are_nearly_the_same_are_pointed_out(tmp_path: Path) -> None:
    touch(tmp_path / "v", "Hug/1.mp4", "hug/1.mp4", "hug /2.mp4", "hug_/3.mp4", "run/1.mp4")
    found = said(tmp_path / "v")
    assert "the classes 'Hug' and 'hug' differ in case or separators only" in found
    assert "the folders 'hug' and 'hug ' and 'hug_' are treated as one class, 'hug'" in found
    assert "run" not in found
    (tmp_path / "m.csv").write_text("path,class,split\na.mp4,hug,train\nb.mp4,hug ,test\n")
    assert "'hug' and 'hug '" in said(tmp_path / "m.csv", "manifest")


def test_a_place_that_does_not_exist_is_called_that(tmp_path: Path) -> None:
    for dataset in ("folder", "hmdb51", "manifest"):
        with pytest.raises(ClipspmError, match=r"--videos .*nowhere does not exist; expected"):
            index_dataset(dataset, tmp_path / "nowhere")


def test_a_data_set_that_is_misspelt_is_recognised() -> None:
    with pytest.raises(UsageError, match="'hmdb15': did you mean hmdb51?"):
        index_dataset("hmdb15")


def test_ids_lose_a_videos_extension_and_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path / "a", "x/clip.v2/1.jpg", "x/clip.v3/1.jpg", "x/taken.avi/1.jpg")
    touch(tmp_path / "b", "x/clip.v2.mp4", "x/clip.v3.MKV", "x/taken.avi")
    ids = [[v.id for v in index_dataset("folder", tmp_path / part).plan.videos] for part in "ab"]
    assert ids[0] == ids[1] == ["x/clip.v2", "x/clip.v3", "x/taken"]
    report = check(index_dataset("folder", tmp_path / "a"), open_files=False)
    assert [c.duplicates for c in report.classes] == [0]
    (tmp_path / "m.csv").write_text("path,class,split\na.y4m,x,train\n")  # as it always was
    assert [v.id for v in index_dataset("manifest", tmp_path / "m.csv").plan.videos] == ["a"]


def test_hidden_files_are_no_frames(tmp_path: Path) -> None:
    touch(tmp_path, "x/ghost/.DS_Store", "x/ghost/._1.jpg", "x/clip/1.jpg", "x/clip/._1.jpg", "x/._a.mp4")
    (video,) = index_dataset("folder", tmp_path).plan.videos
    assert video.id == "x/clip"
    assert count_frames(tmp_path / "x" / "clip") == 1
    assert count_frames(tmp_path / "x" / "ghost") == 0
    with pytest.raises(ClipspmError, match="no video stream"):
        read_frames(tmp_path / "x" / "ghost")
    Image.new("RGB", (8, 8)).save(tmp_path / "x" / "clip" / "1.jpg")
    assert read_frames(tmp_path / "x" / "clip", 2).total == 1


def test_a_name_that_may_be_two_classes_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "v", "big step/1.mp4", "Big-Step/1.mp4", "walk/1.mp4")
    path = tmp_path / "s.json"
    path.write_text('{"train": ["bigstep"], "test": ["walk"]}')
    with pytest.raises(ClipspmError, match="'bigstep' can be '.*' or '.*': use the exact name"):
        index_dataset("folder", tmp_path / "v", path)


@pytest.mark.timeout(20)
@pytest.mark.skipif(sys.platform == "win32", reason="pipes among files")
def test_what_is_no_regular_file_of_splits_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.json")
    for place in (tmp_path / "s.json", Path("/dev/zero"), tmp_path):
        with pytest.raises(ClipspmError, match="cannot read"):
            read_splits(place)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ClipspmError, match=r"large\.json has 8.6 GB"):
        read_splits(tmp_path / "large.json")


@pytest.mark.timeout(20)
def test_links_in_a_circle_are_walked_once(tmp_path: Path) -> None:
    touch(tmp_path / "v", "a/1.mp4", "b/1.mp4")
    for i in range(8):
        (tmp_path / "v" / "a" / f"l{i}").symlink_to(tmp_path / "v")
    assert sorted(p.name for p in all_videos(tmp_path / "v")) == ["1.mp4", "1.mp4"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("path,class,split,class\na.mp4,x,train,y\n")
    with pytest.raises(ClipspmError, match="has the column 'class' twice"):
        index_dataset("manifest", file)
    with file.open("wb") as content:
        content.truncate(2**33)
    with pytest.raises(ClipspmError, match=r"m\.csv has 8\.6 GB"):
        index_dataset("manifest", file)
