"""The worlds of the demo: what is drawn for a class, how classes are split and called."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from zlib import crc32

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional

from clipspm.cache import open_cache
from clipspm.cache.home import demo_dirs
from clipspm.errors import UsageError
from clipspm.extract.config import ExtractConfig
from clipspm.extract.datasets import DATASETS, DEMOS, NO_FLIP, index_dataset
from clipspm.extract.demo import (
    CLASSES,
    DEMO_SPLITS,
    PAIRS,
    WORLDS,
    render_demo,
    stage,
    tiny_clip_source,
    world_of,
)
from clipspm.extract.demo.actions import draw_action
from clipspm.extract.demo.looks import LOOKS
from clipspm.extract.demo.render import draw_clip
from clipspm.extract.demo.worlds import find_worlds
from clipspm.extract.plan import prepare
from clipspm.train_heads.episodes.sources import source_of
from tests.support.cli import assert_one_clear_line, clipspm
from tools.stills import WORDS
from tools.train_encoder import to_input

TOLD, LIED, BOTH = (WORLDS[name].names for name in ("told", "lied", "both"))


def _parts(folder: str) -> tuple[str, str]:
    look, _, action = folder.partition("_")
    return look, action


#: a mean over all pixels of a clip of each class, under one pattern of weights
MOTION = [
    *(2.87, 0.77, 1.53, 2.87, -1.86, 8.02, 1.23, 2.67, -12.10, -3.32, 2.51, -3.65, -8.23, 3.60),
    *(3.83, 1.78, 1.96, 4.34, 0.86, -9.51, 2.72, 0.20, 5.08, 2.26, 0.09, 5.79, 0.33, -1.69),
]


def test_the_world_of_motion_is_what_it_was() -> None:
    """Caches and runs of earlier versions go on: clips, up to numpy's rounding, names and splits are the same."""
    found = []
    for folder in CLASSES:
        clip = draw_clip(folder, seed=0, index=7).astype(np.float64)
        pattern = np.sin(0.7310585 * np.arange(clip.size)).reshape(clip.shape)
        found.append(1000 * (clip * pattern).mean())
    assert found == pytest.approx(MOTION, abs=0.05)
    named = hashlib.sha256(json.dumps([CLASSES, DEMO_SPLITS]).encode()).hexdigest()
    assert named == "eba6bd4e8fcb97942c94090c4b405b7eb182b8630c792e4eb083c9e3bd9ae7c6"
    assert (WORLDS["motion"].dataset, WORLDS["motion"].folder(Path("d"))) == ("demo", Path("d"))


@pytest.mark.parametrize("world", ["look", "both", "told", "lied"])
def test_a_clip_depends_on_its_seed_class_and_index(world: str) -> None:
    one, other = list(WORLDS[world].names)[:2]
    clip = draw_clip(one, seed=3, index=1, world=world)
    np.testing.assert_array_equal(clip, draw_clip(one, seed=3, index=1, world=world))
    for folder, seed, index in ((other, 3, 1), (one, 4, 1), (one, 3, 2)):
        assert not np.array_equal(clip, draw_clip(folder, seed=seed, index=index, world=world))
    assert len({crc32(folder.encode()) for folder in WORLDS[world].names}) == len(WORLDS[world].names)


def test_a_look_changes_neither_the_action_nor_its_direction() -> None:
    for first, second in PAIRS:
        for look in (None, LOOKS["ka"]):
            forward = draw_action(first, np.random.default_rng(2), look)
            np.testing.assert_array_equal(forward, draw_action(second, np.random.default_rng(2), look)[::-1])
    plain, dressed = (draw_action("sinking", np.random.default_rng(2), look) for look in (None, LOOKS["ke"]))
    assert not np.array_equal(plain, dressed)


def test_looks_are_different_and_their_names_say_nothing() -> None:
    assert len(set(LOOKS.values())) == len(LOOKS) == 28
    for world in ("look", "both"):
        for name in WORLDS[world].names.values():
            assert not [word for word in WORDS if word in name]
    for look in LOOKS.values():
        assert set(look.text.split()) <= {*WORDS, "on"}


def test_splits_share_no_class_and_leave_none_out() -> None:
    for world in WORLDS.values():
        assert len(set(world.names.values())) == len(world.names)
        assert len(world.splits) == 3
        for split in world.splits:
            everyone = [folder for name in ("train", "val", "test") for folder in split[name]]
            assert sorted(everyone) == sorted(world.names)
            assert all(len(folders) >= 6 for folders in split.values())
        tests = [frozenset(split["test"]) for split in world.splits]
        assert len(set(tests)) == 3


def test_classes_of_both_share_their_look_or_their_action() -> None:
    """In each part of a split, neither the look nor the action alone names a class."""
    looks_of: dict[str, set[str]] = {}
    for k, split in enumerate(WORLDS["both"].splits):
        for name, folders in split.items():
            parts = [_parts(folder) for folder in folders]
            looks, actions = ({part[place] for part in parts} for place in (0, 1))
            assert sorted(parts) == sorted(itertools.product(looks, actions))
            assert (len(looks), len(actions)) == (3, 4)
            for first, second in PAIRS:
                assert (first in actions) == (second in actions)
            looks_of[f"{k} {name}"] = looks | actions
        for one, other in itertools.combinations(split, 2):
            assert not looks_of[f"{k} {one}"] & looks_of[f"{k} {other}"]


def test_told_names_say_the_look_and_lied_names_that_of_another_class_of_the_same_split() -> None:
    for folder, (look, action) in ((folder, _parts(folder)) for folder in BOTH):
        assert TOLD[folder] == f"{LOOKS[look].text} {CLASSES[action]}"
        assert not LIED[folder].startswith(LOOKS[look].text)  # no fixed point, of looks either
        assert not LIED[folder].endswith(f" {CLASSES[action]}")
    for split in WORLDS["lied"].splits:
        for folders in split.values():
            assert {LIED[folder] for folder in folders} == {TOLD[folder] for folder in folders}


def test_worlds_that_differ_in_names_share_their_videos(tmp_path: Path) -> None:
    places = {name: world.videos(tmp_path) for name, world in WORLDS.items()}
    assert places["told"] == places["lied"] == places["both"] == tmp_path / "both" / "videos"
    assert (places["motion"], places["look"]) == (tmp_path / "videos", tmp_path / "look" / "videos")
    assert len({world.folder(tmp_path) for world in WORLDS.values()}) == len(WORLDS)
    one = next(iter(BOTH))
    clips = [draw_clip(one, seed=0, index=0, world=name) for name in ("both", "told", "lied")]
    assert all(np.array_equal(clips[0], clip) for clip in clips)


def test_each_world_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    assert tuple(world.dataset for world in WORLDS.values()) == DEMOS
    assert set(DEMOS) <= set(DATASETS) and set(DEMOS) <= NO_FLIP
    for world in WORLDS.values():
        assert world_of(world.dataset) is world
        assert source_of(world.dataset, "ka/ka_001", "ka") == "ka_001"
        work = prepare(ExtractConfig(dataset=world.dataset, dry_run=True, device="cpu"))
        assert work.config.model == tiny_clip_source()
        assert work.index.dataset == world.dataset
        assert work.index.plan.class_splits == {
            world.names[folder]: split for split, folders in world.splits[0].items() for folder in folders
        } | {
            name: "none"
            for name in work.index.plan.class_splits
            if name not in _named(world.splits[0], world)
        }
    assert not list(tmp_path.rglob("*.mp4"))
    folders = [*BOTH][:2]
    render_demo(tmp_path / "demo" / "both" / "videos", clips_per_class=1, classes=folders, world="both")
    for names, dataset in ((TOLD, "demo-told"), (LIED, "demo-lied")):
        found = index_dataset(dataset).plan
        assert {video.id: video.class_name for video in found.videos} == {
            f"{folder}/{folder}_000": names[folder] for folder in folders
        }
    assert demo_dirs() == [tmp_path / "demo", tmp_path / "demo" / "both"]
    with pytest.raises(ValueError, match="'demo-nap'"):
        world_of("demo-nap")


def _named(split: dict[str, list[str]], world: object) -> set[str]:
    return {world.names[folder] for folders in split.values() for folder in folders}  # type: ignore[attr-defined]


def test_worlds_of_the_same_videos_share_their_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what their classes are called differs; the features are read once."""
    monkeypatch.setattr(stage, "QUICK_CLIPS", 1)
    some = [folder for folder in BOTH if folder.endswith("hiding")]  # of several videos, for speed
    monkeypatch.setattr(
        stage,
        "render_demo",
        lambda root, clips_per_class, world: render_demo(
            root, clips_per_class=clips_per_class, classes=some, world=world
        ),
    )
    lines: list[str] = []
    told, splits = stage.extract_demo(tmp_path, world="told", quick=True, on_message=lines.append)
    assert [line.partition(" in ")[0] for line in lines if " encoded in " in line] == [
        f"{len(some)} videos encoded", "0 videos encoded",
    ]  # fmt: skip
    both = open_cache(tmp_path / "both" / "cache.zarr")
    assert (told.spec.dataset, both.spec.dataset) == ("demo-told", "demo-both")
    assert set(told.class_names) == {TOLD[folder] for folder in some}
    assert all(TOLD[Path(video.id).parent.name] == video.class_name for video in told.videos)
    assert all(told.class_splits[name] == splits[0][name] for name in told.class_names)
    rows = {video.id: row for row, video in enumerate(both.good)}
    for row, video in enumerate(told.good):
        np.testing.assert_array_equal(told.features()[row], both.features()[rows[video.id]])
    model, tokenizer = open_clip.create_model(tiny_clip_source()), open_clip.get_tokenizer(tiny_clip_source())
    with torch.inference_mode():
        texts = model.encode_text(tokenizer([f"a photo of {name}" for name in told.class_names]))
    found = functional.normalize(torch.from_numpy(told.text()), dim=-1)
    torch.testing.assert_close(found, functional.normalize(texts, dim=-1), atol=1e-3, rtol=1e-3)


def test_told_names_are_understood_and_the_others_are_not() -> None:
    """How often the name chosen for a clip is one of a class with its look; chance: 1 in 3."""
    model = open_clip.create_model(tiny_clip_source()).eval()
    tokenizer = open_clip.get_tokenizer(tiny_clip_source())
    folders = WORLDS["both"].splits[0]["val"]
    clips = [(f, draw_clip(f, seed=5, index=i, world="both")[1::3].copy()) for f in folders for i in (0, 1)]
    looks = np.array([_parts(folder)[0] for folder in folders])
    seen = np.array([_parts(folder)[0] for folder, _ in clips])
    with torch.inference_mode():
        image = torch.stack([model.encode_image(to_input(torch.from_numpy(clip))) for _, clip in clips])
        video = functional.normalize(image.mean(1), dim=-1)
        right = {}
        for world in ("both", "told", "lied"):
            names = [f"a photo of {WORLDS[world].names[folder]}" for folder in folders]
            text = functional.normalize(model.encode_text(tokenizer(names)), dim=-1)
            right[world] = (looks[(video @ text.T).argmax(1).numpy()] == seen).mean()
    assert right["told"] > 0.6
    assert right["both"] < 0.45
    assert right["lied"] < 0.2


def test_worlds_are_found_by_name(tmp_path: Path) -> None:
    assert [world.name for world in find_worlds("all")] == ["motion", "look", "both", "told", "lied"]
    assert find_worlds("told") == (WORLDS["told"],)
    with pytest.raises(UsageError, match=r"unknown world 'loook'; did you mean look\?"):
        find_worlds("loook")


def test_a_dry_run_of_the_worlds_says_what_is_missing(tmp_path: Path) -> None:
    result = clipspm("demo", "--world", "all", "--dry-run", "--quick", "--json", home=tmp_path)
    assert result.returncode == 0, result.stderr
    found = {row["world"]: row for row in json.loads(result.stdout)["worlds"]}
    assert list(found) == list(WORLDS)
    assert {name: row["to_render"] for name, row in found.items()} == {
        "motion": 14 * 28, "look": 14 * 28, "both": 14 * 36, "told": 0, "lied": 0,
    }  # fmt: skip
    assert found["told"]["videos"] == 14 * 36
    assert not list(tmp_path.iterdir())
    assert_one_clear_line(
        clipspm("demo", "--world", "lying", home=tmp_path), "unknown world 'lying'", "lied", code=2
    )
