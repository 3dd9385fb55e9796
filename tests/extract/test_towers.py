"""Every family of towers goes through an extraction, and what is cached is what the model gives."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.models.eva import Eva

from clipspm.cache import open_cache
from clipspm.cache.transform import convert, export, merge, pack
from clipspm.cache.verify import verify
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import ExtractConfig, extract, read_frames
from clipspm.extract.encoder import Encoder, preprocessing_of
from clipspm.extract.layers import number_of, token_of
from clipspm.extract.models import check_model
from clipspm.extract.timm_towers import build_tower
from clipspm.extract.views import ClipSettings, still
from clipspm.extract.weights import WeightsOutOfReach, load_model
from tests.support.media import TINY_CONFIG, numbered_frames, tiny_local_dir, write_video

TEXT = TINY_CONFIG["text_cfg"]


def of_timm(name: str, pool: str, proj: str | None, size: int = 160, **more: Any) -> dict:
    vision = {"timm_model_name": name, "timm_model_pretrained": False, "image_size": size}
    return {
        "embed_dim": 32,
        "vision_cfg": {**vision, "timm_pool": pool, "timm_proj": proj},
        "text_cfg": TEXT,
        **more,
    }


def test_pe(**options: Any) -> torch.nn.Module:
    """PE-Core's tower, smaller."""
    for name in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    return Eva(
        img_size=48, patch_size=16, embed_dim=32, depth=4, num_heads=2, use_rot_pos_emb=True, attn_type="rope",
        use_pre_transformer_norm=True, ref_feat_shape=(3, 3), rope_grid_offset=1.0, rope_grid_indexing="xy",
        attn_pool_num_heads=2, attn_pool_mlp_ratio=4.0, norm_layer=partial(torch.nn.LayerNorm, eps=1e-5),
        **options,
    )  # fmt: skip


test_pe.__test__ = False  # type: ignore[attr-defined]
COCA = {
    "embed_dim": 16,
    "vision_cfg": {
        **TINY_CONFIG["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True
    },
    "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "context_length": 76, "attn_pooler_heads": 2},
    "custom_text": True,
}  # fmt: skip
FAMILIES: dict[str, dict] = {
    "vit": TINY_CONFIG,
    "resnet": {
        **TINY_CONFIG,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    },
    "timm-convnext": of_timm("test_convnext", "", "linear"),
    "siglip": of_timm(
        "test_vit3",
        "map",
        "none",
        embed_dim=96,
        custom_text=True,
        init_logit_bias=-10.0,
        init_logit_scale=2.3,
    ),
    "pe": of_timm("test_pe", "map", None, 48, custom_text=True),
    "coca": COCA,
}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "test_pe", test_pe)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for name, width in (("run", 56), ("wave", 88)):
        for i in range(2):
            write_video(root / name / f"{i}.mp4", numbered_frames(9 + i, 40, width))
    return root


def asked(videos: Path, model: str, **more: Any) -> ExtractConfig:
    return ExtractConfig(
        dataset="folder", videos=videos, model=model, frames=2, precision="fp32", device="cpu",
        workers=1, store_dtype="fp32", **more,
    )  # fmt: skip


def expected_layers(model: Any, images: torch.Tensor, layers: tuple[str, ...], kind: str) -> dict:
    """What ``forward_intermediates`` gives, one layer at a time."""
    vit = kind in ("vit", "siglip", "pe", "coca", "timm-vit")
    found = {}
    for layer in layers:
        with torch.no_grad():
            if layer == "final":
                found[layer] = model.encode_image(images, normalize=False)
                continue
            indices = [number_of(layer)] if kind != "resnet" else sorted({number_of(layer), 4})
            options = {"image_output_extra_tokens": True} if vit else {}
            out = model.forward_intermediates(
                image=images, image_indices=indices, image_output_fmt="NLC" if vit else "NCHW", **options
            )
        tokens = out["image_intermediates"][0]
        if token_of(layer) == "cls":
            found[layer] = out["image_intermediates_prefix"][0][:, 0]
        else:
            found[layer] = tokens.mean(1 if vit else (-2, -1))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_extracted_as_the_model_gives_it(tmp_path: Path, videos: Path, family: str) -> None:
    model = tiny_local_dir(tmp_path / family, FAMILIES[family], resize_mode="squash")
    said: list[str] = []
    result = extract(asked(videos, model), on_start=said.append)
    cache = open_cache(result.path)
    assert verify(result.path).ok and len(cache.spec.layers) >= 3
    assert any(line.startswith("layers (width): ") for line in said)
    reference, _, transform = open_clip.create_model_and_transforms(model)
    reference.eval()
    for row, video in enumerate(cache.good):
        frames = read_frames(videos / video.path, 2, backend="pyav").frames
        images = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
        for layer, value in expected_layers(reference, images, cache.spec.layers, family).items():
            found = torch.from_numpy(cache.features(layer)[row][0])
            torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4, msg=f"{family} {layer}")
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(model)(["a photo of run"])
        text = reference.encode_text(tokens, normalize=False)[0]
    np.testing.assert_allclose(cache.text()[0], text, rtol=1e-3, atol=1e-4)


def test_sigmoid_models_score_as_they_were_trained(tmp_path: Path, videos: Path) -> None:
    """The bias and the scale come with the texts, and the probabilities of pairs are the model's own."""
    from clipspm.train_heads.config import resolve_config
    from clipspm.train_heads.episodes.data import Data
    from clipspm.train_heads.heads import build_head
    from clipspm.train_heads.heads.episode import Episode
    from clipspm.train_heads.request import fit_to_cache

    model = tiny_local_dir(tmp_path / "siglip", FAMILIES["siglip"], resize_mode="squash")
    result = extract(asked(videos, model, layers="final", splits=split(tmp_path)))
    cache = open_cache(result.path)
    assert cache.spec.logit_bias == -10 and cache.spec.logit_scale == pytest.approx(np.exp(2.3), rel=1e-5)
    assert '"logit_scale"' in (result.path / "spec.json").read_text()
    without = replace(cache.spec, logit_scale=None, logit_bias=None)
    assert without.fingerprint == cache.spec.fingerprint  # the weights say it: older caches can be extended

    data = Data(cache)
    config = resolve_config(overrides={"head": "zero-shot", "way": 2, "queries": 1, "frames": 2})
    fitted = fit_to_cache(config, data.pools, data.spec, lambda line: None)
    assert fitted.head_config == {"text_scale": cache.spec.logit_scale, "text_bias": -10.0}
    head = build_head("zero-shot", dim=96, frames=2, config=fitted.head_config)
    features = torch.from_numpy(cache.features("final")[:, 0]).unsqueeze(0)
    labels, text = torch.tensor([[0, 0, 1, 1]]), torch.from_numpy(cache.text()).unsqueeze(0)
    logits = head.run(Episode({"final": features}, {"final": features}, labels, text)).logits[0]
    reference = open_clip.create_model(model).eval()
    images, texts = features[0].mean(1), text[0]
    images, texts = (torch.nn.functional.normalize(x, dim=-1) for x in (images, texts))
    with torch.no_grad():
        expected = reference.logit_scale.exp() * images @ texts.T + reference.logit_bias
    torch.testing.assert_close(logits.sigmoid(), expected.sigmoid(), rtol=1e-4, atol=1e-7)
    own = resolve_config(overrides={"head": "zero-shot", "way": 2, "queries": 1, "frames": 2, "head_config": {"text_scale": 5.0}})  # fmt: skip
    assert fit_to_cache(own, data.pools, data.spec, lambda line: None).head_config["text_scale"] == 5


def split(tmp_path: Path) -> Path:
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ["run", "wave"], "val": [], "test": []}))
    return file


# ----------------------------------------------------------------------------------------------- timm


def saved(name: str, folder: Path, seed: int = 0) -> Path:
    """Random weights of a timm model, as a file with a classifier, as timm publishes them."""
    torch.manual_seed(seed)
    model = timm.create_model(name)
    for module in model.modules():  # what is zero at first would hide
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.bias)
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


@pytest.mark.parametrize(("name", "kind"), [("test_vit", "timm-vit"), ("test_convnext", "timm-cnn")])
def test_a_tower_of_timm_is_extracted_as_timm_gives_it(
    tmp_path: Path, videos: Path, name: str, kind: str
) -> None:
    file = saved(name, tmp_path / "w")
    said: list[str] = []
    result = extract(asked(videos, f"timm:{name}", pretrained=str(file)), on_start=said.append)
    cache = open_cache(result.path)
    assert cache.spec.model == f"timm:{name}" and cache.spec.pretrained == file.name
    assert not cache.spec.has_text and verify(result.path).ok
    assert any("has no text tower" in line for line in said)
    trunk = timm.create_model(name, num_classes=0).eval()
    full = timm.create_model(name).eval()
    torch.manual_seed(0)
    full.load_state_dict(timm.models.load_state_dict(str(file)))
    trunk.load_state_dict({k: v for k, v in full.state_dict().items() if k in trunk.state_dict()})
    transform = create_transform(**resolve_model_data_config(trunk), is_training=False)
    for row, video in enumerate(cache.good):
        frames = read_frames(videos / video.path, 2, backend="pyav").frames
        images = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
        with torch.no_grad():
            found = torch.from_numpy(cache.features("final")[row][0])
            torch.testing.assert_close(found, trunk(images), rtol=1e-3, atol=1e-4)
            for layer in cache.spec.layers[:-1]:
                maps = trunk.forward_intermediates(
                    images,
                    indices=[number_of(layer)],
                    intermediates_only=True,
                    **({"return_prefix_tokens": True, "output_fmt": "NLC"} if kind == "timm-vit" else {}),
                )[0]
                wanted = maps.mean((-2, -1)) if kind == "timm-cnn" else maps[0].mean(1)
                wanted = maps[1][:, 0] if token_of(layer) == "cls" else wanted
                found = torch.from_numpy(cache.features(layer)[row][0])
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(3, 160, 160), (3, 96, 160)])
def test_pixels_are_those_of_timm(mode: str, pct: float, size: tuple[int, int, int]) -> None:
    if mode == "center" and size[1] != size[2]:
        pytest.skip("some versions of timm interpolate otherwise there than the model says")
    tower = build_tower("test_vit")
    about = tower.visual.trunk.pretrained_cfg
    tower.visual.trunk.pretrained_cfg = {**about, "crop_mode": mode, "crop_pct": pct, "input_size": size}
    from clipspm.extract.timm_towers import _pixels

    pre = preprocessing_of(_pixels(tower.visual.trunk), None, "model")
    kept = {k: v for k, v in vars(pre).items() if k not in ("mean", "std")}
    settings = ClipSettings(frames=1, views=1, flip=False, min_frames=1, **kept)
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    transform = create_transform(**resolve_model_data_config(tower.visual.trunk), is_training=False)
    for shape in ((120, 200), (200, 120), (90, 90)):
        image = coarse.resize(shape[::-1], Image.Resampling.BICUBIC)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pre.mean, pre.std))
        shown = torch.from_numpy(still(np.asarray(image), settings).copy()).permute(2, 0, 1) / 255
        gap = ((shown - mean) / std - transform(image)).abs().max() * 255
        assert gap < 0.1, (mode, pct, shape)


def test_a_cache_without_texts_goes_everywhere(tmp_path: Path, videos: Path) -> None:
    file = saved("test_convnext", tmp_path / "w")
    config = asked(videos, "timm:test_convnext", pretrained=str(file), layers="final")
    zarr = extract(replace(config, out=tmp_path / "a.zarr")).path
    hdf5 = extract(replace(config, out=tmp_path / "b.h5", format="hdf5")).path
    convert(zarr, tmp_path / "c.h5")
    pack(zarr, tmp_path / "p.zarr")
    merge([zarr, tmp_path / "p.zarr"], tmp_path / "m.zarr")
    for path in (zarr, hdf5, *(tmp_path / name for name in ("c.h5", "p.zarr", "m.zarr"))):
        assert verify(path).ok, path
        cache = open_cache(path)
        assert cache.text(templates=True).shape == (2, 0, 64)
        with pytest.raises(ClipspmError, match=r"has no class texts: timm:test_convnext has no text tower"):
            cache.text()
    export(zarr, tmp_path / "e.npz")
    assert np.load(tmp_path / "e.npz")["text"].shape == (2, 0, 64)
    assert extract(replace(config, out=tmp_path / "a.zarr")).already == 4


def test_prompts_for_a_tower_without_text_are_refused_at_once(videos: Path, tmp_path: Path) -> None:
    for more in ({"prompts": "photo"}, {"descriptions": tmp_path / "d.json"}):
        (tmp_path / "d.json").write_text('{"run": "legs", "wave": "hands"}')
        with pytest.raises(UsageError, match="timm:test_vit has no text tower that could read them"):
            extract(asked(videos, "timm:test_vit", **more))
    encoder = Encoder("timm:test_vit", str(saved("test_vit", tmp_path / "w")), precision="fp32", device="cpu")
    with pytest.raises(ClipspmError, match="timm:test_vit has no text tower: it encodes images only"):
        encoder.encode_text(["wave"], ["{}"])


@pytest.mark.parametrize(
    ("model", "pretrained", "said"),
    [
        ("timm:test_vitt", None, "no model 'test_vitt'; close ones: test_vit"),
        ("timm:test_vit.nope", None, "timm knows it as r160_in1k"),
        ("timm:../x", None, r"is timm:NAME or timm:NAME.TAG"),
        ("timm:test_vit", "nope", "no such file .a tag is part of the name: timm:test_vit.nope"),
        ("timm:test_vit4", None, "timm publishes no weights of timm:test_vit4"),
        ("hf-hub:nobody", None, "is hf-hub:ORG/NAME"),
        ("hf-hub:a/b/../c", None, "is hf-hub:ORG/NAME"),
        ("hf-hub:a/b", "openai", "brings its own weights"),
    ],
)
def test_wrong_names_are_one_line(model: str, pretrained: str | None, said: str) -> None:
    def load() -> None:
        check_model(model, pretrained)
        load_model(model, pretrained)

    with pytest.raises(UsageError, match=said) as caught:
        load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["hf-hub:nobody/has-this", "timm:test_vit", "timm:test_vit.r160_in1k"])
def test_a_hub_out_of_reach_is_said(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipspm.extract.weights._hub_answers", lambda cfg: False)
    monkeypatch.setattr("clipspm.extract.weights._already_downloaded", lambda *about: False)
    with pytest.raises(WeightsOutOfReach, match=f"the weights {model} are not on this machine") as caught:
        load_model(model, None)
    assert "\n" not in str(caught.value)


def hub_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose every repository has the files of ``folder``."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def download(repository: str, name: str) -> str:
        if not (folder / name).is_file():
            raise EntryNotFoundError.__new__(EntryNotFoundError)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("clipspm.extract.weights._hub_answers", lambda cfg: True)
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", lambda model_id, filename, **k: download(model_id, filename))  # fmt: skip


def test_models_of_the_hub_are_those_of_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tiny_local_dir(tmp_path / "t", resize_mode="squash")
    here = Encoder(local, None, precision="fp32", device="cpu")
    hub_of(tmp_path / "t", monkeypatch)
    there = Encoder("hf-hub:somebody/tiny", None, precision="fp32", device="cpu")
    mine, theirs = here.identity(), there.identity()
    assert theirs.pop("model") == "hf-hub:somebody/tiny" and mine.pop("model") == "local-dir:t"
    assert mine == theirs and there.preprocessing.resize_mode == "squash"
    np.testing.assert_array_equal(there.encode_text(["run"], ["{}"]), here.encode_text(["run"], ["{}"]))
    (tmp_path / "t" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ClipspmError, match="of the hub has no open_clip_model.safetensors or"):
        load_model("hf-hub:somebody/tiny", None)
    (tmp_path / "t" / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {"layers": 99999}}}')
    (tmp_path / "t" / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(ClipspmError, match="layers is 99999"):
        load_model("hf-hub:somebody/tiny", None)


def test_weights_of_timm_come_from_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved("test_vit", tmp_path / "w")
    by_file = load_model("timm:test_vit", str(file))
    file.rename(file.with_name("model.safetensors"))
    hub_of(tmp_path / "w", monkeypatch)
    by_hub = load_model("timm:test_vit.r160_in1k", None)
    assert by_hub.weights_sha256 == by_file.weights_sha256
    assert by_hub.architecture_sha256 == by_file.architecture_sha256


def test_no_weight_of_a_tower_stays_random(tmp_path: Path) -> None:
    file = saved("test_vit", tmp_path / "w")
    state = timm.models.load_state_dict(str(file))
    del state["blocks.1.attn.qkv.weight"]
    save_file({k: v.contiguous() for k, v in state.items()}, file)
    with pytest.raises(ClipspmError, match="does not fit --model timm:test_vit: .*blocks.1.attn.qkv.weight"):
        load_model("timm:test_vit", str(file))
    torch.save({"x": Path("code")}, tmp_path / "w.pt")
    with pytest.raises(ClipspmError, match="does not fit --model timm:test_vit"):
        load_model("timm:test_vit", str(tmp_path / "w.pt"))
