"""The demo's videos, class splits and tiny CLIP."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional

from clipspm.extract.demo import CLASSES, DEMO_SPLITS, PAIRS, demo_splits, render_demo, tiny_clip_source
from clipspm.extract.demo.actions import FRAMES, draw_action
from clipspm.extract.demo.render import draw_clip
from clipspm.extract.demo.shapes import KINDS, SYMMETRY, Thing, coverage
from tools.stills import WORDS, draw_stills
from tools.train_encoder import clip_config, to_input, train

FOLDER = Path(tiny_clip_source().removeprefix("local-dir:"))


def _decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_class_is_its_pair_reversed(first: str, second: str) -> None:
    for seed in range(3):
        forward = draw_action(first, np.random.default_rng(seed))
        backward = draw_action(second, np.random.default_rng(seed))
        np.testing.assert_array_equal(forward, backward[::-1])
        assert not np.array_equal(forward, backward)


def test_classes_of_a_pair_draw_their_own_clips() -> None:
    for first, second in PAIRS:
        one, two = draw_clip(first, seed=0, index=0), draw_clip(second, seed=0, index=0)
        assert not np.array_equal(one, two[::-1])


def test_the_middles_of_eight_segments_mirror() -> None:
    middles = [int((i + 0.5) * FRAMES / 8) for i in range(8)]
    assert [FRAMES - 1 - m for m in reversed(middles)] == middles


def test_files_do_not_depend_on_workers_or_company(tmp_path: Path) -> None:
    some = ["dawn", "swelling"]
    render_demo(tmp_path / "a", clips_per_class=2, workers=1, classes=some)
    render_demo(tmp_path / "b", clips_per_class=3, workers=3, classes=["parting", *some])
    for path in sorted((tmp_path / "a").rglob("*.mp4")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".mp4"}
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["dawn", "parting", "swelling"]


def test_files_hold_the_drawn_frames_as_h264(tmp_path: Path) -> None:
    render_demo(tmp_path, clips_per_class=1, classes=["climbing"], seed=5)
    (path,) = tmp_path.rglob("*.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    difference = _decode(path).astype(int) - draw_clip("climbing", seed=5, index=0)
    assert np.abs(difference).mean() < 5


def test_finished_files_are_kept(tmp_path: Path) -> None:
    render_demo(tmp_path, clips_per_class=1, classes=["dawn"])
    (path,) = tmp_path.rglob("*.mp4")
    path.write_bytes(b"kept")
    render_demo(tmp_path, clips_per_class=2, classes=["dawn"])
    assert path.read_bytes() == b"kept"
    assert len(list(tmp_path.rglob("*.mp4"))) == 2


def test_unknown_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'nap'"):
        render_demo(tmp_path, classes=["nap"])


def test_seeds_and_numbers_change_the_clip() -> None:
    clips = [draw_clip("dawn", seed=s, index=i).tobytes() for s, i in itertools.product((0, 1), (0, 1))]
    assert len(set(clips)) == 4


def test_shapes_have_the_symmetry_they_are_said_to_have() -> None:
    for kind in KINDS:
        turned = [0.0, SYMMETRY[kind], SYMMETRY[kind] / 2]
        things = [Thing(kind=kind, x=0.5, y=0.5, size=0.3, angle=np.deg2rad(a)) for a in turned]
        plain, same, other = (coverage(thing, 1) for thing in things)
        np.testing.assert_allclose(plain, same, atol=2e-3)
        assert np.abs(plain - other).sum() > 40  # pixels


def test_pairs_are_never_torn() -> None:
    assert len(PAIRS) >= 14
    assert len(DEMO_SPLITS) == 3
    for k in range(3):
        split = demo_splits(k)
        assert {name: len(folders) for name, folders in split.items()} == {"train": 12, "val": 6, "test": 10}
        everyone = [folder for folders in split.values() for folder in folders]
        assert len(set(everyone)) == len(everyone)
        assert set(everyone) <= set(CLASSES)
        for first, second in PAIRS:
            assert all((first in folders) == (second in folders) for folders in split.values())
    with pytest.raises(ValueError, match="0 to 2"):
        demo_splits(3)


def test_captions_and_class_names_share_no_word() -> None:
    said = set(WORDS) | {"a", "on", "at"}
    captions = draw_stills(np.random.default_rng(0), groups=16, variants=8).captions
    assert {word for caption in captions for word in caption.split() if not word.isdigit()} <= said
    for name in CLASSES.values():
        assert not set(name.split()) & said
        assert not [word for word in WORDS if word in name]  # nor as a token inside a word


def test_stills_are_reproducible_and_varied() -> None:
    one, again = (draw_stills(np.random.default_rng(3), groups=2, variants=8) for _ in range(2))
    assert one.captions == again.captions
    np.testing.assert_array_equal(one.images, again.images)
    assert len(set(one.captions)) > 10


def test_tiny_clip_is_small_and_is_what_the_script_builds() -> None:
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 4e6
    assert json.loads((FOLDER / "open_clip_config.json").read_text()) == clip_config()


def test_tiny_clip_loads_from_anywhere(tmp_path: Path) -> None:
    code = (
        "import open_clip, sys\n"
        "name = sys.argv[1]\n"
        "model, _, _ = open_clip.create_model_and_transforms(name)\n"
        "tokens = open_clip.get_tokenizer(name)(['a tiny red star at high left', 'climbing'])\n"
        "print(tuple(model.encode_text(tokens).shape))\n"
    )
    # without a home or a network either
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_clip_source()],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 128)"


def test_the_package_imports_without_torch() -> None:
    code = "import sys, clipspm.extract.demo.render; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture(scope="module")
def encoder() -> tuple[Any, Any]:
    model = open_clip.create_model(tiny_clip_source())
    return model.eval(), open_clip.get_tokenizer(tiny_clip_source())


def test_tiny_clip_reads_stills(encoder: tuple[Any, Any]) -> None:
    """It finds the caption of a still among those of 63 unrelated ones."""
    model, tokenizer = encoder
    stills = draw_stills(np.random.default_rng([9, 9]), groups=64, variants=1)
    with torch.inference_mode():
        image = functional.normalize(model.encode_image(to_input(torch.from_numpy(stills.images))), dim=-1)
        text = functional.normalize(model.encode_text(tokenizer(stills.captions)), dim=-1)
    found = ((image @ text.T).argmax(1) == torch.arange(64)).float().mean().item()
    assert found > 0.3


def test_zero_shot_is_at_chance_on_test_classes(encoder: tuple[Any, Any]) -> None:
    """Each draw in both directions: a name is right 1 in 2 times within its pair, 1 in 5 among five."""
    model, tokenizer = encoder
    draws = 8
    for split in range(3):
        folders = demo_splits(split)["test"]
        frames = np.stack(
            [
                draw_action(folder, np.random.default_rng([5, place // 2, i]))[1::3]
                for place, folder in enumerate(folders)
                for i in range(draws)
            ]
        )
        with torch.inference_mode():
            image = model.encode_image(to_input(torch.from_numpy(frames).flatten(0, 1)))
            video = functional.normalize(image.reshape(len(frames), 8, -1).mean(1), dim=-1)
            text = functional.normalize(model.encode_text(tokenizer([CLASSES[f] for f in folders])), dim=-1)
        scores = (video @ text.T).unflatten(0, (len(folders), draws))
        for first in range(0, len(folders), 2):
            chosen = scores[first : first + 2, :, first : first + 2].argmax(-1)
            assert (chosen == torch.tensor([[0], [1]])).float().mean().item() == 0.5
        hits = []
        for among in itertools.combinations(range(len(folders)), 5):
            chosen = scores[list(among)][..., list(among)].argmax(-1)
            hits.append((chosen == torch.arange(5)[:, None]).float().mean().item())
        assert abs(np.mean(hits) - 0.2) < 0.08


def test_training_writes_a_loadable_folder(tmp_path: Path) -> None:
    train(tmp_path, steps=2, groups=2, variants=2)
    model = open_clip.create_model(f"local-dir:{tmp_path}")
    assert sum(p.numel() for p in model.parameters()) < 2e6
    assert torch.isfinite(model.encode_image(torch.zeros(1, 3, 48, 48))).all()


def test_clip_streams_differ_between_classes() -> None:
    assert len({crc32(folder.encode()) for folder in CLASSES}) == len(CLASSES)
