"""Stage one as a whole, on real files and a tiny encoder."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipspm.cache import open_cache
from clipspm.cache.transform import convert, export, merge, pack
from clipspm.cache.verify import repair, verify
from clipspm.errors import ClipspmError
from clipspm.extract import ExtractConfig, extract, read_frames
from clipspm.extract.decode_pool import DecodePool
from clipspm.extract.views import Clip, ClipSettings, load_clip, resized_shape
from tests.support.media import TINY_CONFIG, numbered_frames, tiny_local_dir, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for c, name in enumerate(("wave_hand", "run", "jump")):
        for i in range(3):
            write_video(root / name / f"clip ({i}) #&.mp4", numbered_frames(20 + 7 * c + i, 40 + 4 * i, 56))
    return root


@pytest.fixture
def config(tmp_path: Path, model: str, videos: Path, monkeypatch: pytest.MonkeyPatch) -> ExtractConfig:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    return ExtractConfig(
        dataset="folder",
        videos=videos,
        model=model,
        layers="0,2,final",
        frames=4,
        precision="fp32",
        device="cpu",
        workers=2,
        batch_size=5,
        shard_size=4,
    )


def reference_features(path: Path, model_name: str, frames: int) -> np.ndarray:
    """The plain way: decode, PIL, one frame at a time, encode_image."""
    model = open_clip.create_model(model_name).eval()
    out = []
    for frame in read_frames(path, frames, backend="pyav").frames:
        height, width = resized_shape(*frame.shape[:2], 37)
        image = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - 32) / 2), round((height - 32) / 2)
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + 32, top + 32)))).permute(2, 0, 1)
        with torch.no_grad():
            out.append(model.encode_image((pixels[None].float() / 255 - 0.5) / 0.25)[0].numpy())
    return np.stack(out)


def test_features_equal_the_plain_way(config: ExtractConfig, videos: Path, model: str) -> None:
    result = extract(config)
    assert (result.done, result.already, result.failures) == (9, 0, ())
    cache = open_cache(result.path)
    assert cache.spec.resize == 37  # 8/7 of 32
    found = cache.features("final")
    assert found.shape == (9, 1, 4, 16)
    for row, video in enumerate(cache.good):
        expected = reference_features(videos / video.path, model, 4)
        np.testing.assert_allclose(found[row, 0].astype(np.float32), expected, rtol=2e-3, atol=2e-3)
        assert video.indices == tuple(read_frames(videos / video.path, 4).indices)
        assert video.frames > 0 and video.backend and len(video.pts_seconds) == 4
    assert cache.features("0").shape == (9, 1, 4, 32)
    assert cache.text().shape == (3, 16)
    assert cache.class_names == ("jump", "run", "wave hand")


def test_the_result_does_not_depend_on_workers_format_or_interruption(
    config: ExtractConfig, tmp_path: Path
) -> None:
    whole = open_cache(extract(replace(config, out=tmp_path / "a.zarr")).path)
    calls = []

    def stop_after_six(progress) -> None:  # type: ignore[no-untyped-def]
        calls.append(progress)
        if len(calls) == 7:
            raise KeyboardInterrupt

    other = replace(config, out=tmp_path / "b.h5", format="hdf5", workers=1)
    with pytest.raises(KeyboardInterrupt):
        extract(other, on_progress=stop_after_six)
    assert not (tmp_path / "b.h5").exists()
    resumed = extract(other)
    assert resumed.already == 4 and resumed.done == 5  # the committed shard is not done again
    cache = open_cache(tmp_path / "b.h5")
    assert cache.videos == whole.videos
    for layer in ("0", "2", "final"):
        np.testing.assert_array_equal(cache.features(layer), whole.features(layer))
    again = extract(other)
    assert (again.done, again.already) == (0, 9)


def test_bad_videos_are_recorded_and_the_good_ones_unchanged(
    config: ExtractConfig, tmp_path: Path, videos: Path
) -> None:
    clean = open_cache(extract(replace(config, out=tmp_path / "clean.zarr")).path)
    root = tmp_path / "mixed"
    for source in videos.rglob("*.mp4"):
        target = root / source.relative_to(videos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (root / "run" / "a empty.mp4").touch()
    (root / "jump" / "text.avi").write_text("hello")
    os.mkfifo(root / "run" / "pipe.mkv")
    result = extract(replace(config, videos=root, out=tmp_path / "mixed.zarr", batch_size=7))
    assert result.done == 9
    assert {Path(p).name: category for p, category, _ in result.failures} == {
        "a empty.mp4": "unreadable",
        "text.avi": "unreadable",
        "pipe.mkv": "unreadable",
    }
    cache = open_cache(result.path)
    assert [v.id for v in cache.good] == [v.id for v in clean.good]
    for layer in ("0", "2", "final"):  # other batches: equal to one unit in the last place of fp16
        a, b = (np.asarray(c.features(layer)).astype(np.float32) for c in (cache, clean))
        assert (np.abs(a - b) <= np.spacing(np.abs(b).astype(np.float16)).astype(np.float32)).all()
    assert extract(replace(config, videos=root, out=tmp_path / "mixed.zarr")).done == 0  # failures are kept


def test_a_hanging_or_dying_decoder_costs_one_video(
    videos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = sorted(videos.rglob("*.mp4"))[:3]
    settings = ClipSettings(2, 1, 37, 32, "bicubic", False, 1)
    # a module that the workers import decides what some names do
    (tmp_path / "sitecustomize.py").write_text(
        "import clipspm.extract.views as c, os, time\n"
        "plain = c.read_frames\n"
        "def read(path, *a, **k):\n"
        "    if 'hang' in str(path): time.sleep(60)\n"
        "    if 'die' in str(path): os._exit(11)\n"
        "    return plain(path, *a, **k)\n"
        "c.read_frames = read\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    jobs = [(good[0], "a"), (Path("hang"), "b"), (good[1], "c"), (Path("die"), "d"), (good[2], "e")]
    jobs += [(path, "f") for path in good * 4]  # more than have room in the shared memory
    kinds = []
    with DecodePool(settings, workers=2, timeout=4.0) as pool:
        for (path, video_id), found in zip(jobs, pool.stream(jobs), strict=True):
            kinds.append(getattr(found, "category", "ok"))
            if isinstance(found, Clip):
                np.testing.assert_array_equal(found.pixels, load_clip(path, video_id, settings).pixels)
    assert kinds == ["ok", "timeout", "ok", "crashed", "ok", *["ok"] * 12]


def test_views(videos: Path) -> None:
    path = videos / "run" / "clip (0) #&.mp4"
    plain = load_clip(path, "x", ClipSettings(3, 1, 37, 32, "bicubic", True, 1)).pixels
    many = load_clip(path, "x", ClipSettings(3, 6, 37, 32, "bicubic", True, 1)).pixels
    again = load_clip(path, "x", ClipSettings(3, 6, 37, 32, "bicubic", True, 1)).pixels
    np.testing.assert_array_equal(many, again)
    np.testing.assert_array_equal(many[0], plain[0])
    assert len({view.tobytes() for view in many}) > 2
    height, width = 37, resized_shape(40, 56, 37)[1]
    frames = read_frames(path, 3).frames
    resized = [
        np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC)) for f in frames
    ]
    places = [
        np.stack([r[top : top + 32, left : left + 32] for r in resized])
        for top in range(height - 31)
        for left in range(width - 31)
    ]
    upright = {p.tobytes() for p in places}
    mirrored = {p[:, :, ::-1].tobytes() for p in places}
    assert all(view.tobytes() in upright | mirrored for view in many)
    assert any(view.tobytes() in mirrored for view in many)
    unflipped = load_clip(path, "x", ClipSettings(3, 6, 37, 32, "bicubic", False, 1)).pixels
    assert all(view.tobytes() in upright for view in unflipped)


def test_limit_is_spread_over_the_classes_and_can_be_lifted(config: ExtractConfig, tmp_path: Path) -> None:
    config = replace(config, out=tmp_path / "c.zarr")
    assert extract(replace(config, limit=4)).done == 4
    first = open_cache(tmp_path / "c.zarr")
    assert {v.class_name for v in first.good} == {"jump", "run", "wave hand"}
    result = extract(config)
    assert (result.done, result.already) == (5, 4)
    assert extract(replace(config, limit=1)).done == 0


def test_dry_run_writes_nothing(config: ExtractConfig, tmp_path: Path) -> None:
    result = extract(replace(config, dry_run=True, out=tmp_path / "c.zarr"))
    assert result.dry_run and result.videos == 9 and result.bytes_needed > 9 * 4 * (32 + 32 + 16) * 2
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_a_repaired_cache_goes_on_whatever_the_command_says(
    config: ExtractConfig, tmp_path: Path, format: str
) -> None:
    config = replace(config, format=format, out=tmp_path / f"c.{format}", limit=6)
    path = extract(config).path
    if format == "zarr":
        shutil.rmtree(path / "text" / "c")
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    repair(verify(path))
    assert extract(replace(config, dry_run=True)).already in (0, 6)
    assert extract(config).videos == 6 and verify(path).ok


def test_a_damaged_spec_is_one_clear_line(config: ExtractConfig, tmp_path: Path) -> None:
    path = extract(replace(config, out=tmp_path / "c.zarr")).path
    (path / "spec.json").write_text("{")
    with pytest.raises(ClipspmError, match="is damaged"):
        extract(replace(config, out=path, precision="auto"))


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_dry_run_tells_what_is_done_already(config: ExtractConfig, tmp_path: Path, format: str) -> None:
    assert config.videos is not None
    videos = Path(shutil.copytree(config.videos, tmp_path / "videos"))
    min(videos.rglob("*.mp4")).write_bytes(b"no video")
    config = replace(config, videos=videos, format=format, out=tmp_path / f"c.{format}")
    assert extract(replace(config, limit=4)).done == 3
    plan = replace(config, dry_run=True)
    assert extract(plan).already == 4
    assert extract(replace(plan, retry_failed=True)).already == 3
    assert extract(replace(plan, overwrite=True)).already == 0
    with pytest.raises(ClipspmError, match="is a folder but not a cache"):
        extract(replace(plan, overwrite=True, out=videos))


def test_other_settings_onto_the_same_path_are_refused(config: ExtractConfig, tmp_path: Path) -> None:
    config = replace(config, out=tmp_path / "c.zarr")
    first = extract(config)
    with pytest.raises(ClipspmError, match="frames: 4 != 6") as caught:
        extract(replace(config, frames=6))
    assert first.fingerprint[:16] in str(caught.value)
    assert extract(replace(config, frames=6, overwrite=True)).done == 9


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_layers_of_tokens_go_through_every_kind_of_cache(
    config: ExtractConfig, tmp_path: Path, format: str
) -> None:
    """Resumed, converted, packed, merged, exported: the names are ``2:mean``, and no file has a colon."""
    config = replace(config, layers=None, format=format, out=tmp_path / f"c.{format}", workers=1)
    names = ("0:cls", "0:mean", "1:cls", "1:mean", "2:cls", "2:mean", "final")
    lines: list[str] = []
    assert extract(replace(config, limit=4), on_start=lines.append).layers == dict.fromkeys(names, 32) | {
        "final": 16
    }
    said = next(line for line in lines if line.startswith("layers"))
    assert said.startswith("layers (width): 0:cls (32), 0:mean (32),") and "2.1 kB per video, " in said
    path = extract(config).path
    assert verify(path).ok
    cache = open_cache(path)
    assert cache.spec.layers == names and list(cache.summary()["layers"]) == list(names)
    named = open_cache(extract(replace(config, layers="2,2:cls,2:mean", out=tmp_path / "named.zarr")).path)
    np.testing.assert_array_equal(named.features("2"), cache.features("2:cls"))
    np.testing.assert_array_equal(named.features("2:mean"), cache.mapped("2:mean")[:])
    assert (named.features("2") != named.features("2:mean")).mean() > 0.9
    other = tmp_path / ("d.h5" if format == "zarr" else "d.zarr")
    copies = [convert(path, other), pack(other, tmp_path / "e.zarr"), merge([path, other], tmp_path / "f.h5")]
    for copy in copies:
        assert verify(copy).ok
        np.testing.assert_array_equal(open_cache(copy).features("1:mean"), cache.features("1:mean"))
    with np.load(export(path, tmp_path / "g.npz")) as arrays:
        np.testing.assert_array_equal(arrays["features.2.mean"], cache.features("2:mean"))
    assert not [place for place in tmp_path.rglob("*") if ":" in place.name]
    if format == "zarr":
        chunk = next(p for p in (path / "layers" / "1.mean" / "c").rglob("*") if p.is_file())
        chunk.write_bytes(bytes(8) + chunk.read_bytes()[8:])
        assert any("1:mean" in f.where or "1.mean" in f.where for f in verify(path).findings)
        repair(verify(path))
        extract(config)
        np.testing.assert_array_equal(open_cache(path).features("1:mean"), cache.features("1:mean"))


def test_a_cache_that_is_extended_keeps_its_layers(config: ExtractConfig, tmp_path: Path) -> None:
    config = replace(config, out=tmp_path / "c.zarr", workers=1)
    assert extract(replace(config, limit=4)).done == 4
    config = replace(config, dry_run=True)
    result = extract(replace(config, layers=None))
    assert (result.already, list(result.layers)) == (4, ["0", "2", "final"])
    with pytest.raises(ClipspmError, match=r"layers: \('0', '2', 'final'\) != \('0:cls', '0:mean'"):
        extract(replace(config, layers="auto"))
    with pytest.raises(ClipspmError, match=r"layers: .* != \('0:mean', '1:mean', '2:mean', 'final'\)"):
        extract(replace(config, layers=None, tokens="mean"))
    other = tiny_local_dir(
        tmp_path / "other", {**TINY_CONFIG, "vision_cfg": {**TINY_CONFIG["vision_cfg"], "layers": 1}}
    )
    with pytest.raises(ClipspmError, match="architecture_sha256: "):
        extract(replace(config, layers=None, model=other))


def test_tokens_do_not_apply_to_pooled_maps(config: ExtractConfig, shared_dir: Path, tmp_path: Path) -> None:
    model = f"local-dir:{shared_dir / 'weights' / 'mobilenetv2-in1k'}"
    said: dict[str | None, list[str]] = {None: [], "mean": []}
    for tokens, lines in said.items():
        plan = replace(config, model=model, layers=None, tokens=tokens, dry_run=True, out=tmp_path / "c.zarr")
        assert extract(plan, on_start=lines.append).layers == {"3": 96, "4": 320, "final": 512}
        assert any("has pooled maps, no tokens: --tokens does not apply" in line for line in lines) == bool(
            tokens
        )


def test_descriptions_are_in_the_record_and_in_the_fingerprint(config: ExtractConfig, tmp_path: Path) -> None:
    about = tmp_path / "d.json"
    given = {
        "wave_hand": ["somebody waves", "a hand moves"],
        "run": "legs",
        "jump": "up " * 90,
        "fly": "wings",
    }
    about.write_text(json.dumps(given))
    config = replace(config, out=tmp_path / "c.zarr", descriptions=about, limit=3, layers="final", workers=1)
    lines: list[str] = []
    first = extract(config, on_start=lines.append)
    assert f"note: {about}: 'fly' is no class here, not used" in lines
    assert f"note: cut to the 77 tokens that local-dir:tiny reads: {'up ' * 89 + 'up'!r}" in lines
    cache = open_cache(first.path)
    assert cache.spec.prompts == ("{}",) and verify(first.path).ok
    assert cache.spec.descriptions == {
        "jump": [("up " * 90).strip()],
        "run": ["legs"],
        "wave hand": ["somebody waves", "a hand moves"],
    }
    np.testing.assert_allclose(np.linalg.norm(cache.text(), axis=1), 1, rtol=1e-6)
    again = replace(config, limit=None, dry_run=True)
    assert extract(again).already == 3
    about.write_text(json.dumps({**given, "run": "feet"}))
    with pytest.raises(
        ClipspmError, match=r"descriptions \(first of class 'run'\): \['legs'\] != \['feet'\]"
    ):
        extract(again)
    with pytest.raises(ClipspmError, match="prompts: "):
        extract(replace(again, descriptions=None))
    about.write_text(json.dumps({"wave": "a", "runn": "b", "jump": "c"}))
    with pytest.raises(
        ClipspmError, match="no description of class 'run'.*; is it 'runn', which is no class"
    ):
        extract(again)


def test_names_in_prompts_are_words_and_old_caches_keep_theirs(
    config: ExtractConfig, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in (("PullUps", "run"), ("jump", "jump")):
        shutil.copytree(videos / source, tmp_path / "v" / name)
    config = replace(
        config, videos=tmp_path / "v", out=tmp_path / "c.zarr", layers="final", limit=2, workers=1
    )
    lines: list[str] = []
    cache = open_cache(extract(config, on_start=lines.append).path)
    assert "note: in prompts, 'PullUps' is 'Pull Ups'" in lines
    assert cache.class_names == ("PullUps", "jump") and cache.spec.names == "cleaned"
    old = replace(config, out=tmp_path / "old.zarr")
    with monkeypatch.context() as patch:  # as versions did that knew no cleaning
        patch.setattr("clipspm.extract.pipeline.spoken", lambda name: name)
        before = open_cache(extract(old).path)
    assert before.spec.names == "as given" and '"names"' not in (before.path / "spec.json").read_text()
    changed = np.abs(before.text() - cache.text()).max(axis=1) > 1e-3
    assert changed.tolist() == [True, False]
    assert extract(replace(old, limit=None, dry_run=True)).already == 2


def test_fp16_overflow_names_the_layer(config: ExtractConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = tiny_local_dir(tmp_path / "huge", TINY_CONFIG)
    weights = tmp_path / "huge" / "open_clip_model.safetensors"
    state = load_file(weights)
    state["visual.transformer.resblocks.2.mlp.c_proj.bias"] += 1e5
    save_file(state, str(weights))
    with pytest.raises(ClipspmError, match="layer 2 reaches .* use --store-dtype fp32"):
        extract(replace(config, model=source, out=tmp_path / "c.zarr"))
    result = extract(replace(config, model=source, out=tmp_path / "d.zarr", store_dtype="fp32"))
    assert np.abs(open_cache(result.path).features("2")).max() > 65504


def test_pixel_normalisation_is_part_of_the_fingerprint(config: ExtractConfig, tmp_path: Path) -> None:
    a = extract(replace(config, out=tmp_path / "a.zarr", dry_run=True))
    b = extract(replace(config, out=tmp_path / "b.zarr", dry_run=True, pixel_norm="none"))
    assert a.fingerprint != b.fingerprint


def test_real_videos_and_a_real_encoder(shared_dir: Path, tmp_path: Path, config: ExtractConfig) -> None:
    splits = tmp_path / "s.json"
    splits.write_text(json.dumps({"train": ["hug", "kick", "push"], "test": ["handshake", "point", "punch"]}))
    result = extract(
        replace(
            config,
            videos=shared_dir / "videos" / "ut_interaction",
            splits=splits,
            model=f"local-dir:{shared_dir / 'weights' / 'mobilenetv2-in1k'}",
            layers="1,3,final",
            limit=12,
            batch_size=32,
        )
    )
    cache = open_cache(result.path)
    assert result.done == 12 and not result.failures
    assert sorted(set(cache.class_splits.values())) == ["test", "train"]
    features = cache.features("final").astype(np.float32)
    assert features.shape == (12, 1, 4, 512) and np.isfinite(features).all() and features.std() > 0.1
