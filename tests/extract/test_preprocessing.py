"""An encoder is shown the pixels that it was made with: open_clip's own transform is the reference."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from benchmarks.pixels import Published, covering, differences, published
from clipspm.cache import open_cache
from clipspm.cache.spec import CacheSpec
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import ExtractConfig, extract, read_frames
from clipspm.extract.encoder import Encoder
from clipspm.extract.models import check_model
from clipspm.extract.views import ClipSettings, cut_of, load_clip, scaled_shape
from clipspm.extract.weights import _published_pixels
from tests.support.media import TINY_CONFIG, numbered_frames, tiny_local_dir, write_video

WIDE = {**TINY_CONFIG, "vision_cfg": {**TINY_CONFIG["vision_cfg"], "image_size": [32, 48]}}


def name_of(found: Published) -> str:
    c = found.config
    return f"{c['resize_mode']}-{c['interpolation']}-{c['size']}-{c['mean'][0]:.2f}"


@pytest.fixture(scope="module")
def real_frames(shared_dir: Path) -> list[np.ndarray]:
    folder = shared_dir / "videos" / "torchvision_assets"
    names = ("RATRACE_wave_f_nm_np1_fr_goo_37.avi", "v_SoccerJuggling_g23_c01.avi", "R6llTwEh07w.mp4")
    return [read_frames(folder / name, 1).frames[0] for name in names]


@pytest.mark.parametrize("found", published(), ids=name_of)
def test_pixels_are_those_of_open_clip(real_frames: list[np.ndarray], found: Published) -> None:
    """Each distinct preprocessing of open_clip's published weights, in steps of 255."""
    most, mean = differences(real_frames, found.config, **covering(found.config))
    assert most < 0.01 and mean < 0.001  # rounding of float32
    most, mean = differences(real_frames, found.config, by="torch", **covering(found.config))
    assert most < 2.01 and mean < 0.05


def test_the_published_ways_are_several() -> None:
    modes = {found.config["resize_mode"] for found in published()}
    assert modes >= {"shortest", "squash"} and len(published()) >= 20
    shown = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    assert _published_pixels("ViT-B-16-SigLIP", "webli") == shown
    assert _published_pixels("ViT-B-16-SigLIP", None) == shown  # a file of weights: all of its tags agree
    assert _published_pixels("ViT-H-14", None) == {}  # they differ


@pytest.mark.parametrize("size", [32, (32, 48), (48, 32)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (20, 25), (37, 53), (8, 300)])
def test_every_mode_and_shape_is_that_of_open_clip(size: Any, mode: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    frame = np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))
    config = {
        "size": size,
        "resize_mode": mode,
        "interpolation": "bicubic",
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "fill_color": 117,
    }
    assert differences([frame], config, **covering(config))[0] < 0.01
    assert differences([frame], config, by="torch", **covering(config))[0] < 2.01


def test_a_colour_fills_what_a_frame_lacks() -> None:
    settings = ClipSettings(1, 1, 32, 32, "bicubic", False, 1, 0, "longest", None, (1, 2, 3))
    assert scaled_shape(20, 64, settings) == (10, 32)
    assert cut_of(20, 64, "", settings).padding == (0, 11, 0, 11)
    assert cut_of(21, 64, "", settings).padding == (0, 11, 0, 11) != cut_of(18, 64, "", settings).padding


def test_views_of_padded_and_squashed_frames_stay_inside(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(9, 40, 96))
    for mode in ("longest", "squash"):
        settings = ClipSettings(2, 5, 40, 32, "bicubic", True, 1, 0, mode, 24, (9, 9, 9))  # type: ignore[arg-type]
        pixels = load_clip(path, "x", settings).pixels
        assert pixels.shape == (5, 2, 32, 24, 3)
        plain = load_clip(path, "x", replace(settings, views=1)).pixels
        np.testing.assert_array_equal(pixels[0], plain[0])
        assert any((view != pixels[0]).any() for view in pixels[1:])


def videos(root: Path) -> Path:
    for name, width in (("run", 56), ("wave", 88)):
        write_video(root / name / "a.mp4", numbered_frames(9, 40, width))
        write_video(root / name / "b.mp4", numbered_frames(12, 72, width))
    return root


@pytest.mark.parametrize(
    ("config", "pixels"),
    [
        (TINY_CONFIG, {"resize_mode": "squash", "interpolation": "bilinear"}),
        (TINY_CONFIG, {"resize_mode": "longest", "fill_color": 200}),
        (WIDE, {"resize_mode": "squash"}),
    ],
)
def test_an_extraction_shows_what_the_model_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict, pixels: dict
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    model = tiny_local_dir(tmp_path / "tiny", config, **pixels)
    asked = ExtractConfig(
        dataset="folder",
        videos=videos(tmp_path / "videos"),
        model=model,
        layers="final",
        frames=2,
        precision="fp32",
        device="cpu",
        workers=1,
        store_dtype="fp32",
    )
    result = extract(asked)
    cache = open_cache(result.path)
    assert cache.spec.resize_mode == pixels["resize_mode"]
    assert cache.spec.fill == (pixels.get("fill_color", 0),) * 3
    assert (cache.spec.crop, cache.spec.crop_width) == ((32, 48) if config is WIDE else (32, None))
    reference, _, transform = open_clip.create_model_and_transforms(model)
    for row, video in enumerate(cache.good):
        frames = read_frames(asked.videos / video.path, 2, backend="pyav").frames  # type: ignore[operator]
        images = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
        with torch.no_grad():
            expected = reference.eval().encode_image(images)
        torch.testing.assert_close(
            torch.from_numpy(cache.features("final")[row][0]), expected, rtol=1e-4, atol=1e-5
        )
    wider = extract(replace(asked, resize=36))
    assert wider.fingerprint != result.fingerprint
    by_torch = extract(replace(asked, resize_on="encoder"))
    features = [open_cache(found.path).features("final")[:] for found in (by_torch, result)]
    assert np.linalg.norm(features[0] - features[1]) < 2e-2 * np.linalg.norm(features[1])


def test_what_is_as_it_was_keeps_its_fingerprint(tmp_path: Path) -> None:
    encoder = Encoder(tiny_local_dir(tmp_path / "t"), None, precision="fp32", device="cpu")
    spec = CacheSpec(
        **encoder.identity(), dataset="x", frames=2, views=1, flip=False, prompts=("{}",)
    )  # like those of before
    assert not {"resize_mode", "crop_width", "fill"} & set(json.loads(spec.to_json()))
    squashed = replace(spec, resize_mode="squash")
    assert squashed.fingerprint != spec.fingerprint
    assert CacheSpec.from_json(squashed.to_json()) == squashed
    assert squashed.differences(spec) == ["resize_mode: squash != shortest"]


def test_views_without_a_margin_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    model = tiny_local_dir(tmp_path / "tiny", resize_mode="squash")
    config = ExtractConfig(
        dataset="folder", videos=videos(tmp_path / "v"), model=model, views=2, dry_run=True, device="cpu"
    )
    said: list[str] = []
    extract(config, on_start=said.append)
    assert any("views are mirrored at most; --resize above 32" in line for line in said)
    said.clear()
    extract(replace(config, resize=40), on_start=said.append)
    assert not any("mirrored" in line for line in said)
    with pytest.raises(UsageError, match="--resize 31 is smaller than the crop of 32"):
        extract(replace(config, resize=31))


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        ({"resize_mode": "widest"}, "its resize_mode is 'widest'"),
        ({"interpolation": "nearest"}, "its interpolation is 'nearest'"),
        ({"fill_color": 256}, "its fill_color is 256"),
        ({"fill_color": [1, 2]}, "its fill_color is"),
        ({"resize_mode": ["squash"]}, "its resize_mode is"),
    ],
)
def test_pixels_that_cannot_be_made_are_refused_before_the_model_is_built(
    tmp_path: Path, pixels: dict, said: str
) -> None:
    model = tiny_local_dir(tmp_path / "tiny", **pixels)
    with pytest.raises(ClipspmError, match=said):
        check_model(model, None)
