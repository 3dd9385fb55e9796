"""The encoder: right layers, unnormalised, the right weights or a clear refusal."""

import hashlib
import json
import time
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file

from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.encoder import Encoder
from clipspm.extract.layers import parse_layers
from clipspm.extract.prompts import TEMPLATES, fill, load_templates
from clipspm.extract.weights import load_model
from tests.support.media import TINY_CONFIG, register_architecture, tiny_local_dir

RESNET = {
    **TINY_CONFIG,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
}
TIMM_CNN = {
    "embed_dim": 16,
    "vision_cfg": {
        "timm_model_name": "mobilenetv2_035",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": TINY_CONFIG["text_cfg"],
}
TIMM_VIT = {
    "embed_dim": 16,
    "vision_cfg": {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": TINY_CONFIG["text_cfg"],
}
TOWERS = {"vit": TINY_CONFIG, "resnet": RESNET, "timm-cnn": TIMM_CNN}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("towers")
    return {name: tiny_local_dir(root / name, config) for name, config in TOWERS.items()}


@pytest.mark.parametrize("tower", TOWERS)
def test_layers_equal_a_plain_forward(towers: dict[str, str], tower: str) -> None:
    encoder = Encoder(towers[tower], None, layers=("0", "2", "final"), precision="fp32", device="cpu")
    crop = encoder.preprocessing.crop
    pixels = torch.randint(
        0, 256, (3, 3, crop, crop), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    found = encoder.encode_images(pixels)
    assert list(found) == ["0", "2", "final"]
    model = open_clip.create_model(towers[tower]).eval()
    taken: dict[str, torch.Tensor] = {}
    visual = model.visual
    modules = {
        "vit": lambda: [visual.transformer.resblocks[i] for i in (0, 2)],
        "resnet": lambda: [visual.act3, visual.layer2],
        "timm-cnn": lambda: [visual.trunk.blocks[0], visual.trunk.blocks[2]],
    }[tower]()
    for name, module in zip(("0", "2"), modules, strict=True):
        module.register_forward_hook(lambda m, i, o, name=name: taken.__setitem__(name, o))
    images = (pixels.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        final = model.encode_image(images, normalize=False)
    torch.testing.assert_close(found["final"], final, rtol=1e-4, atol=1e-5)
    assert (found["final"].norm(dim=-1) - 1).abs().min() > 1e-3  # not normalised
    for name, value in taken.items():
        expected = value[:, 0] if tower == "vit" else value.mean((-2, -1))
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
    assert {k: v.shape[-1] for k, v in found.items()} == encoder.dims


def test_a_timm_vit_gives_its_class_token(tmp_path: Path) -> None:
    encoder = Encoder(
        tiny_local_dir(tmp_path / "tv", TIMM_VIT), None, layers=("11", "final"), precision="fp32"
    )
    assert encoder.dims == {"11": 192, "final": 16}
    with pytest.raises(UsageError, match="0 to 11"):
        Encoder(f"local-dir:{tmp_path / 'tv'}", None, layers=("12", "final"))


@pytest.mark.parametrize(("tower", "last"), [("vit", 2), ("resnet", 4), ("timm-cnn", 4)])
def test_an_unknown_layer_names_the_range(towers: dict[str, str], tower: str, last: int) -> None:
    with pytest.raises(UsageError, match=f"no layer 50; it has 0 to {last}"):
        Encoder(towers[tower], None, layers=("50", "final"))


def timm_vit(name: str) -> dict:
    vision = {**TIMM_VIT["vision_cfg"], "timm_model_name": name, "image_size": 160}
    return {**TIMM_VIT, "vision_cfg": vision}


def test_vit_reg4(**options: object) -> torch.nn.Module:
    """timm's smallest ViT with a CLS token and, behind it, four register tokens."""
    return timm.create_model("test_vit", reg_tokens=4, **options)


test_vit_reg4.__test__ = False  # type: ignore[attr-defined]
#: a tower, its tokens before those of the patches, and whether the first of them is a CLS token
VITS = {
    "open_clip": (TINY_CONFIG, 1, True),
    "timm": (timm_vit("test_vit"), 1, True),
    "timm-registers": (timm_vit("test_vit_reg4"), 5, True),
    "timm-registers-only": (timm_vit("test_vit2"), 1, False),
}


@pytest.mark.parametrize("tower", VITS)
def test_tokens_equal_hooks_on_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tower: str
) -> None:
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "test_vit_reg4", test_vit_reg4)
    config, prefix, cls = VITS[tower]
    source = tiny_local_dir(tmp_path / tower, config)
    layers = parse_layers("0,0:mean,2:mean" + (",0:cls,2:cls" if cls else ""))
    encoder = Encoder(source, None, layers=layers, precision="fp32", device="cpu")
    pixels = encoder._probe_images(3)
    passes = []
    visual = open_clip.create_model(source).eval().visual
    encoder._model.visual.register_forward_pre_hook(lambda *_: passes.append(1))
    blocks = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    taken: dict[int, torch.Tensor] = {}
    for i in (0, 2):
        blocks[i].register_forward_hook(lambda m, given, out, i=i: taken.__setitem__(i, out))
    with torch.no_grad():
        final = visual((pixels.float() / 255 - 0.5) / 0.25)
    assert (
        taken[0].shape[1] == prefix + (encoder.preprocessing.crop // (8 if tower == "open_clip" else 16)) ** 2
    )
    expected = {"final": final}
    for i, tokens in taken.items():
        mean = sum(tokens[:, place] for place in range(prefix, tokens.shape[1])) / (tokens.shape[1] - prefix)
        expected |= {f"{i}:cls": tokens[:, 0], f"{i}:mean": mean}
    expected["0"] = expected["0:cls" if cls else "0:mean"]
    for precision, most in (("fp32", 1e-5), ("bf16", 3e-2), ("fp16", 3e-3)):
        encoder.precision = precision
        found = encoder.encode_images(pixels)
        assert list(found) == list(encoder.layers) == list(layers)
        for layer, value in found.items():
            assert value.dtype == torch.float32 and value.shape[-1] == encoder.dims[layer]
            assert (value - expected[layer]).norm() / expected[layer].norm() < most, (layer, precision)
    assert not passes  # forward_intermediates, and nothing beside it
    assert not torch.allclose(expected["0:cls"], expected["0:mean"], rtol=0.05)


def test_auto_is_settled_by_the_tower(towers: dict[str, str]) -> None:
    def auto(tower: str, **options: object) -> tuple[str, ...]:
        return Encoder(
            towers[tower], None, layers=("auto",), precision="fp32", device="cpu", **options
        ).layers  # type: ignore[arg-type]

    assert auto("vit") == ("0:cls", "0:mean", "1:cls", "1:mean", "2:cls", "2:mean", "final")
    assert auto("vit", tokens=("mean",)) == ("0:mean", "1:mean", "2:mean", "final")
    assert auto("resnet") == auto("timm-cnn") == ("3", "4", "final")


def test_descriptions_are_averaged_as_directions(towers: dict[str, str]) -> None:
    encoder = Encoder(towers["vit"], None, precision="fp32", device="cpu")
    several = [["a hand moves", "somebody waves to a friend", "hello"], ["legs"]]
    found = encoder.encode_descriptions(several)
    assert found.shape == (2, 1, 16) and found.dtype == np.float32
    for row, sentences in zip(found[:, 0], several, strict=True):
        each = encoder.encode_text(sentences, ["{}"])[:, 0].astype(np.float64)
        mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_texts_that_are_cut_are_found(towers: dict[str, str]) -> None:
    encoder = Encoder(towers["vit"], None, precision="fp32", device="cpu")
    fits, long = "wave " * 75, "wave " * 76  # with start and end, 77 tokens and 78
    assert encoder.cut(["wave", fits, long, "run"]) == [long]


def test_text_is_every_template_unnormalised(towers: dict[str, str]) -> None:
    encoder = Encoder(towers["vit"], None, precision="fp32", device="cpu")
    found = encoder.encode_text(["wave", "draw sword"], TEMPLATES["actionclip16"])
    assert found.shape == (2, 16, 16) and found.dtype == np.float32
    model = open_clip.create_model(towers["vit"]).eval()
    tokens = open_clip.get_tokenizer(towers["vit"])(["a photo of action draw sword"])
    with torch.no_grad():
        np.testing.assert_allclose(found[1, 0], model.encode_text(tokens)[0], rtol=1e-4, atol=1e-5)


def test_prompts(tmp_path: Path) -> None:
    assert len(TEMPLATES["actionclip16"]) == 16
    assert fill("a photo of {}", "Closing [something]") == "a photo of Closing something"
    (tmp_path / "p.txt").write_text("one {}\n\n{} two\n")
    assert load_templates(str(tmp_path / "p.txt")) == ("one {}", "{} two")
    (tmp_path / "p.txt").write_text("no place\n")
    with pytest.raises(ClipspmError, match="needs one {}"):
        load_templates(str(tmp_path / "p.txt"))
    with pytest.raises(ClipspmError, match="neither a named set"):
        load_templates("nope")


def test_openai_archive_gives_the_same_weights_as_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_local_dir(tmp_path / "quick")
    name = register_architecture(tmp_path / "q", "tiny-quick", TINY_CONFIG)
    plain = register_architecture(tmp_path / "p", "tiny-plain", {**TINY_CONFIG, "quick_gelu": False})
    model = open_clip.create_model(source).eval()
    traced = torch.jit.trace_module(
        model,
        check_trace=False,
        inputs={
            "encode_image": (torch.zeros(1, 3, 32, 32),),
            "encode_text": (torch.zeros(1, 77, dtype=torch.int),),
        },
    )
    archive = tmp_path / "ViT-tiny.pt"
    torch.jit.save(traced, str(archive))
    checkpoint = tmp_path / "weights.pt"
    torch.save(load_file(tmp_path / "quick" / "open_clip_model.safetensors"), checkpoint)
    with pytest.raises(ClipspmError, match="can run code, and by its SHA-256 not one that OpenAI"):
        load_model(name, str(archive))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr("clipspm.extract.weights.openai_archives", lambda: {digest})
    with warnings.catch_warnings(action="error", category=FutureWarning):  # torch deprecates its only reader
        loaded = [load_model(name, str(p)) for p in (archive, checkpoint)] + [load_model(source, None)]
    assert len({m.weights_sha256 for m in loaded}) == 1
    assert {m.activation for m in loaded} == {"quick_gelu"}
    with pytest.raises(UsageError, match="trained with QuickGELU, but --model tiny-plain computes GELU"):
        load_model(plain, str(archive))


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-16", "openai", "use --model ViT-B-16-quickgelu"),
        ("ViT-B-17", "openai", "no architecture 'ViT-B-17'; close ones: ViT-B-16"),
        ("ViT-B-16", "nope", "neither a file nor a tag"),
        ("ViT-B-16", None, "needs --pretrained"),
        ("local-dir:/nowhere", None, "no open_clip_config.json"),
        ("local-dir:/nowhere", "openai", "brings its own weights"),
    ],
)
def test_wrong_models_are_one_clear_line(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(ClipspmError, match=message) as caught:
        load_model(model, pretrained)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    name = register_architecture(tmp_path / "q", "tiny-fit", TINY_CONFIG)
    torch.save({"visual.proj": torch.zeros(3, 3)}, tmp_path / "w.pt")
    with pytest.raises(ClipspmError, match="does not fit --model tiny-fit"):
        load_model(name, str(tmp_path / "w.pt"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "open_clip_config.json").write_text("{}")
    with pytest.raises(ClipspmError, match="not an open_clip configuration"):
        load_model(f"local-dir:{tmp_path / 'bad'}", None)


def test_no_weights_in_a_local_dir_is_an_error_not_random(tmp_path: Path) -> None:
    tiny_local_dir(tmp_path / "t")
    (tmp_path / "t" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ClipspmError, match="cannot be built"):
        load_model(f"local-dir:{tmp_path / 't'}", None)


def test_an_unreachable_hub_says_so_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    import clipspm.extract.weights as weights

    def never(*args: object, **options: object) -> None:
        time.sleep(30)
        raise socket.gaierror

    monkeypatch.setattr(weights, "_already_downloaded", lambda *about: False)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    start = time.perf_counter()
    with pytest.raises(ClipspmError, match="hub cannot be reached") as caught:
        load_model("ViT-B-16-quickgelu", "openai")
    assert time.perf_counter() - start < 5.5
    for way_on in ("--pretrained", "local-dir:", "--dataset demo"):
        assert way_on in str(caught.value)


def test_auto_precision_is_within_the_tolerance_and_remembered(
    towers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))
    auto = Encoder(towers["vit"], None, layers=("1", "final"), device="cpu")
    assert auto.precision in ("fp32", "fp16", "bf16")
    exact = Encoder(towers["vit"], None, layers=("1", "final"), device="cpu", precision="fp32")
    pixels = auto._probe_images(8)
    a, b = auto.encode_images(pixels), exact.encode_images(pixels)
    assert all(((a[k] - b[k]).norm() / b[k].norm()) <= 1e-2 for k in a)
    monkeypatch.setattr(Encoder, "_measure_precision", lambda self: pytest.fail("measured twice"))
    assert Encoder(towers["vit"], None, layers=("1", "final"), device="cpu").precision == auto.precision


@pytest.mark.parametrize("layers", [("final",), ("0", "1", "final")])
def test_blocks_in_bf16_are_as_exact_as_autocast(towers: dict[str, str], layers: tuple[str, ...]) -> None:
    encoder = Encoder(towers["vit"], None, layers=layers, device="cpu", precision="fp32")
    pixels = encoder._probe_images(8)
    exact, text = encoder.encode_images(pixels), encoder.encode_text(["a"], ["{}"])
    encoder.precision = "bf16"
    held = encoder.encode_images(pixels)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        images = (pixels.float() - encoder._mean) / encoder._std
        cast = encoder._forward(encoder._model, images)

    def error(found: dict[str, torch.Tensor], layer: str) -> float:
        return float((found[layer].float() - exact[layer]).norm() / exact[layer].norm())

    for layer in layers:
        assert held[layer].dtype == torch.float32
        assert 0 < error(held, layer) < 1.1 * error(cast, layer) + 1e-4
    encoder.precision = "fp32"  # and the model itself is what it was
    assert all(torch.equal(encoder.encode_images(pixels)[layer], exact[layer]) for layer in layers)
    np.testing.assert_array_equal(encoder.encode_text(["a"], ["{}"]), text)


def test_the_real_encoder(shared_dir: Path) -> None:
    folder = shared_dir / "weights" / "mobilenetv2-in1k"
    encoder = Encoder(f"local-dir:{folder}", None, layers=("1", "3", "final"), precision="fp32")
    assert encoder.dims == {"1": 24, "3": 96, "final": 512}
    assert (encoder.preprocessing.crop, encoder.preprocessing.resize) == (224, 256)
    assert (
        Encoder(f"local-dir:{folder}", None, pixel_norm="none", precision="fp32").preprocessing.std
        == (1.0,) * 3
    )
    with pytest.raises(UsageError, match="smaller than the crop of 224"):
        Encoder(f"local-dir:{folder}", None, resize=200)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision_cfg": {"layers": 10**9}}, "layers is 1000000000"),
        ({"vision_cfg": {"width": 10**12}}, "width is 1000000000000"),
        (
            {"text_cfg": {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}},
            "reads '/etc/passwd', not open_clip's own",
        ),
        (
            {"text_cfg": {"tokenizer_kwargs": {"additional_special_tokens": ["(a|a)*b"]}}},
            "'.*' is a pattern, not a word",
        ),
        ({"preprocess_cfg": {"std": [0.5, 0, 0.5]}}, "its std of pixels is"),
        ({"preprocess_cfg": {"mean": [float("nan"), 0, 0.5]}}, "its mean of pixels is"),
    ],
)
def test_a_local_configuration_asks_for_nothing_else(tmp_path: Path, change: dict, said: str) -> None:
    folder = tmp_path / "t"
    tiny_local_dir(folder)
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    for part, values in change.items():
        (content["model_cfg"] if part in content["model_cfg"] else content)[part].update(values)
    file.write_text(json.dumps(content))
    with pytest.raises(ClipspmError, match=said):
        load_model(f"local-dir:{folder}", None)
    file.write_text('{"model_cfg": ' + "[" * 100_000)
    with pytest.raises(ClipspmError, match="open_clip_config.json is not an open_clip configuration"):
        load_model(f"local-dir:{folder}", None)


def test_tokens_that_the_text_tower_does_not_know_are_named(tmp_path: Path) -> None:
    tiny_local_dir(tmp_path / "t")
    encoder = Encoder(f"local-dir:{tmp_path / 't'}", None, device="cpu")
    encoder._model.vocab_size = 100
    with pytest.raises(ClipspmError, match=r"its tokenizer gives token \d+, its text tower has 100: set"):
        encoder.encode_text(["wave"], ["{}"])
