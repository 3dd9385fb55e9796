"""import-checkpoint: the authors' files give the recorded logits, their towers the same features."""

import copy
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.encoder import Encoder
from clipspm.extract.tower import infer_architecture, save_encoder
from clipspm.train_heads import CLIPSPM, Run, evaluate, train
from clipspm.train_heads.heads.clipspm.config import make_config
from clipspm.train_heads.import_checkpoint import read_checkpoint
from tests.support.cli import assert_one_clear_line, clipspm
from tests.support.golden import Golden, assert_recorded
from tests.support.media import TINY_CONFIG, numbered_frames, register_architecture, write_video
from tests.support.synthetic import fake_cache, silent, tiny_config

VIT = TINY_CONFIG
RESNET = {
    **TINY_CONFIG,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
}
PRESETS = {"kinetics": "kinetics100"}


def authors_state(head: CLIPSPM) -> dict[str, Tensor]:
    return head.to_reference_state()


def head_of(preset: str = "hmdb51", dim: int = 16, seed: int = 0) -> CLIPSPM:
    torch.manual_seed(seed)
    return CLIPSPM(dim, make_config(preset)).eval()


def as_saved(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"epoch": 7, "model_state_dict": dict(weights), "loss": 0.5}


def without_wrapper(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return dict(weights)


def with_backbone(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return as_saved({**weights, "backbone.conv1.weight": torch.zeros(2, 3, 4, 4)})


def data_parallel(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    both = with_backbone(weights)["model_state_dict"]
    return {"model_state_dict": {f"module.{k}": v for k, v in both.items()}}


@pytest.mark.parametrize("form", [as_saved, without_wrapper, with_backbone, data_parallel])
def test_an_imported_run_gives_the_recorded_logits(
    golden: Golden, form: Callable[[Mapping[str, Tensor]], dict[str, Any]], tmp_path: Path
) -> None:
    torch.save(form(golden.weights), tmp_path / "c.pt")
    preset = PRESETS.get(golden.meta["preset"], golden.meta["preset"])
    args = ("--preset", preset, "--heads-only", "--out", tmp_path / "run", "--json")
    result = clipspm("import-checkpoint", tmp_path / "c.pt", *args, home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["encoder"] is None
    run = Run.open(tmp_path / "run")
    assert (run.config.recipe, run.config.protocol) == ("official", "transductive")
    assert run.results()["selection"] == "imported"
    assert not list(run.path.glob("*.pt"))
    head = run.load_head()
    with torch.no_grad():
        for protocol, key in (("transductive", "logits"), ("inductive", "logits_inductive")):
            assert_recorded(head(**golden.call(), protocol=protocol).logits, golden[key])


def test_safetensors_are_taken_too(golden: Golden, tmp_path: Path) -> None:
    save_file(golden.weights, tmp_path / "c.safetensors")
    preset = PRESETS.get(golden.meta["preset"], golden.meta["preset"])
    head = read_checkpoint(tmp_path / "c.safetensors", preset).head
    with torch.no_grad():
        assert_recorded(head(**golden.call(), protocol="transductive").logits, golden["logits"])


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in authors_state(head_of()).items()}
    torch.save(as_saved(state), tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt", "hmdb51").head
    for name, tensor in authors_state(found).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())


# ------------------------------------------------------------------------------------------- the tower


@pytest.fixture(scope="module", params=["vit", "resnet"])
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = {"vit": VIT, "resnet": RESNET}[request.param]
    folder = tmp_path_factory.mktemp(f"arch-{request.param}")
    return register_architecture(folder, f"tiny-import-{request.param}-quickgelu", config)


def random_model(name: str, seed: int) -> Any:
    torch.manual_seed(seed)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():  # every parameter and running statistic its own
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.dim():
                tensor.add_(0.05 * torch.rand_like(tensor))
    return model


@pytest.fixture(scope="module")
def base_file(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file({k: v.contiguous() for k, v in random_model(architecture, 1).state_dict().items()}, path)
    return path


def tower_of(model: Any) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.visual.state_dict().items()}


def backbone(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{k}": v for k, v in tower.items()}


@pytest.mark.parametrize("half", [False, True])
def test_the_tower_becomes_an_encoder_that_extract_takes(
    architecture: str, base_file: Path, half: bool, tmp_path: Path
) -> None:
    tuned = random_model(architecture, 2)
    tower = {k: v for k, v in tower_of(tuned).items() if not k.endswith("num_batches_tracked")}
    if half:
        tower = {k: v.half() for k, v in tower.items()}
        tuned.visual.load_state_dict({k: v.float() for k, v in tower.items()}, strict=False)
    torch.save(as_saved({**authors_state(head_of()), **backbone(tower)}), tmp_path / "c.pt")
    result = clipspm(
        "import-checkpoint", tmp_path / "c.pt", "--preset", "hmdb51", "--out", tmp_path / "run",
        "--model", architecture, "--base", base_file, "--json", home=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    written = json.loads(result.stdout)["encoder"]
    assert Path(written["file"]) == tmp_path / "run" / "encoder.safetensors"
    assert not list((tmp_path / "run").glob("*.part"))
    encoder = Encoder(architecture, written["file"], pixel_norm="none", precision="fp32", device="cpu")
    assert encoder.source.weights_sha256 == written["weights_sha256"]
    crop = encoder.preprocessing.crop
    pixels = torch.randint(0, 256, (3, 3, crop, crop), dtype=torch.uint8)
    with torch.no_grad():
        expected = tuned.encode_image(pixels.float() / 255)
    torch.testing.assert_close(encoder.encode_images(pixels)["final"], expected, rtol=1e-5, atol=1e-5)
    # the text tower is the base's
    kept = load_file(base_file)
    found = load_file(written["file"])
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[k], kept[k]) for k in kept if not k.startswith("visual."))


def test_import_extract_eval(tmp_path: Path) -> None:
    """A whole checkpoint scored on real videos, and a head of another width refused."""
    name = register_architecture(tmp_path / "arch", "tiny-import-all-quickgelu", VIT)
    base = random_model(name, 1)
    save_file({k: v.contiguous() for k, v in base.state_dict().items()}, tmp_path / "base.safetensors")
    for c, kind in enumerate(("wave", "run", "jump")):
        for i in range(3):
            write_video(tmp_path / "clips" / kind / f"{i}.mp4", numbered_frames(10 + 3 * c + i, 40, 56))
    (tmp_path / "s.json").write_text(json.dumps({"train": ["wave"], "test": ["run", "jump"]}))
    tuned = tower_of(random_model(name, 2))
    torch.save(as_saved({**authors_state(head_of()), **backbone(tuned)}), tmp_path / "c.pt")
    imported = clipspm(
        "import-checkpoint", tmp_path / "c.pt", "--preset", "hmdb51", "--out", tmp_path / "run", "--model",
        name, "--base", tmp_path / "base.safetensors", "--weights-out", tmp_path / "enc.safetensors", home=tmp_path,
    )  # fmt: skip
    assert imported.returncode == 0, imported.stderr
    assert f"--model {name} --pretrained {tmp_path / 'enc.safetensors'} --pixel-norm none" in imported.stdout
    extracted = clipspm(
        "extract", "--dataset", "folder", "--videos", tmp_path / "clips", "--splits", tmp_path / "s.json",
        "--model", name, "--pretrained", tmp_path / "enc.safetensors", "--pixel-norm", "none",
        "--precision", "fp32", "--workers", 1, "--out", tmp_path / "c.zarr", home=tmp_path,
    )  # fmt: skip
    assert extracted.returncode == 0, extracted.stderr
    few = ("--way", 2, "--test-episodes", 20)
    scored = clipspm("eval", tmp_path / "run", "--cache", tmp_path / "c.zarr", *few, "--json", home=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["selection"] == "imported"
    assert "evaluations" in Run.open(tmp_path / "run").results()
    assert_one_clear_line(clipspm("eval", tmp_path / "run", home=tmp_path), "imported", "--cache", code=2)
    torch.save(as_saved(authors_state(head_of(dim=24))), tmp_path / "wide.pt")
    args = ("--preset", "hmdb51", "--out", tmp_path / "wide")
    assert clipspm("import-checkpoint", tmp_path / "wide.pt", *args, home=tmp_path).returncode == 0
    wrong = clipspm("eval", tmp_path / "wide", "--cache", tmp_path / "c.zarr", *few, home=tmp_path)
    assert_one_clear_line(wrong, "width 24", "16", code=2)


def test_the_splits_are_the_caches_own(tmp_path: Path) -> None:
    torch.save(as_saved(authors_state(head_of())), tmp_path / "c.pt")
    run = read_checkpoint(tmp_path / "c.pt", "hmdb51").save(tmp_path / "run")
    cache = fake_cache(dataset="hmdb51")
    for split in ("test", "train"):
        result = evaluate(run, cache, episodes=3, way=3, split=split, log=silent, device="cpu")
        assert result.facts["selection"] == "imported"
        assert len(result.accuracies("transductive")) == 3


def test_training_does_not_go_on_from_an_imported_run(tmp_path: Path) -> None:
    torch.save(as_saved(authors_state(head_of())), tmp_path / "c.pt")
    run = read_checkpoint(tmp_path / "c.pt", "hmdb51").save(tmp_path / "run")
    with pytest.raises(UsageError, match="imported"):
        train(fake_cache(), tiny_config(), run.path, resume=True, log=silent)


@pytest.mark.parametrize(
    "name", ["ViT-B-16-quickgelu", "ViT-B-32-quickgelu", "ViT-L-14-quickgelu", "ViT-L-14-336-quickgelu",
             "RN50-quickgelu", "RN101-quickgelu", "RN50x4-quickgelu"],
)  # fmt: skip
def test_the_architecture_is_told_by_the_shapes(name: str) -> None:
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta", load_weights=False)
    assert infer_architecture(tower_of(model)) == name


# ------------------------------------------------------------------------------------------- refusals


class Evil:
    """What a hostile pickle does: a call while it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def evil_archive(path: Path, mark: Path) -> None:
    torch.save({**as_saved(authors_state(head_of())), "config": Evil(mark)}, path)


def evil_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"model_state_dict": Evil(mark)}))


def evil_old_format(path: Path, mark: Path) -> None:
    torch.save({"model_state_dict": Evil(mark)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [evil_archive, evil_pickle, evil_old_format])
def test_a_malicious_pickle_is_refused(write: Callable[[Path, Path], None], tmp_path: Path) -> None:
    write(tmp_path / "c.pt", tmp_path / "mark")
    args = ("--preset", "hmdb51", "--out", tmp_path / "run")
    result = clipspm("import-checkpoint", tmp_path / "c.pt", *args, home=tmp_path)
    assert_one_clear_line(result, str(tmp_path / "c.pt"), "pickle can run any code")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "run").exists()


def save_text(path: Path) -> None:
    path.write_text("not weights\n")


def save_truncated(path: Path) -> None:
    torch.save(as_saved(authors_state(head_of())), path)
    path.write_bytes(path.read_bytes()[:5000])


def save_other_model(path: Path) -> None:
    torch.save({"model_state_dict": {"fc.weight": torch.zeros(2, 2)}}, path)


def save_list(path: Path) -> None:
    torch.save([torch.zeros(2)], path)


def save_nested(path: Path) -> None:
    torch.save({"model_state_dict": {"motion_conv1.bias": {"a": 1}}}, path)


def save_extra(path: Path) -> None:
    torch.save(as_saved({**authors_state(head_of()), "fc.weight": torch.zeros(2)}), path)


def save_without_one(path: Path) -> None:
    state = authors_state(head_of())
    del state["motion_conv2.weight"]
    torch.save(as_saved(state), path)


def save_nan(path: Path) -> None:
    state = authors_state(head_of())
    state["motion_conv2.bias"][0] = float("nan")
    torch.save(as_saved(state), path)


def save_with(change: Callable[[Tensor], Tensor], name: str = "motion_conv1.bias") -> Callable[[Path], None]:
    """A checkpoint with one tensor changed."""

    def save(path: Path) -> None:
        state = authors_state(head_of())
        state[name] = change(state[name])
        torch.save(as_saved(state), path)

    return save


def save_ucf(path: Path) -> None:
    torch.save(as_saved(authors_state(head_of("ucf101"))), path)


@pytest.mark.parametrize(
    ("write", "parts"),
    [
        (None, ("there is no checkpoint",)),
        (save_text, ("neither a torch.save file nor .safetensors",)),
        (save_truncated, ("cannot be read",)),
        (save_other_model, ("motion_conv1.bias", "missing")),
        (save_list, ("list", "model_state_dict")),
        (save_nested, ("motion_conv1.bias", "dict", "tensor")),
        (save_extra, ("fc.weight", "unknown")),
        (save_without_one, ("motion_conv2.weight", "missing")),
        (save_nan, ("motion_conv2.bias", "not finite")),
        (save_with(lambda t: t[:1].expand(10**6)), ("motion_conv1.bias", "larger than its stored values")),
        (save_with(lambda t: t.to(torch.int8)), ("motion_conv1.bias", "int8", "floating point")),
        (save_with(lambda t: t.to(torch.complex64)), ("motion_conv1.bias", "complex64")),
        (save_with(lambda t: t.to_sparse()), ("motion_conv1.bias", "not a plain dense tensor")),
        (save_with(lambda t: torch.empty(t.shape, device="meta")), ("motion_conv1.bias", "not a plain dense tensor")),
        (save_with(lambda t: t.to(torch.float8_e4m3fn)), ("motion_conv1.bias", "float8_e4m3fn")),
        (save_ucf, ("gate_text.0.weight", "(32, 16)", "(24, 16)", "hmdb51")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_what_does_not_fit_is_one_clear_line(
    write: Callable[[Path], None] | None, parts: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "c.pt"
    if write:
        write(file)
    result = clipspm(
        "import-checkpoint", file, "--preset", "hmdb51", "--out", tmp_path / "run", home=tmp_path
    )
    assert_one_clear_line(result, str(file), *parts)
    assert not (tmp_path / "run").exists()


def test_text_that_calls_itself_safetensors(tmp_path: Path) -> None:
    save_text(tmp_path / "c.safetensors")
    with pytest.raises(ClipspmError, match="cannot be read"):
        read_checkpoint(tmp_path / "c.safetensors", "hmdb51")


def test_usage(tmp_path: Path) -> None:
    torch.save(as_saved(authors_state(head_of())), tmp_path / "c.pt")
    call = ("import-checkpoint", tmp_path / "c.pt", "--out", tmp_path / "run")
    assert_one_clear_line(clipspm(*call, "--preset", "kinetics", home=tmp_path), "kinetics100", code=2)
    assert clipspm(*call, "--preset", "hmdb51", home=tmp_path).returncode == 0
    again = clipspm(*call, "--preset", "hmdb51", home=tmp_path)
    assert_one_clear_line(again, "already holds a run", "--out", code=2)


def test_towers_that_do_not_fit(architecture: str, base_file: Path, tmp_path: Path) -> None:
    tower = tower_of(random_model(architecture, 2))
    out = tmp_path / "e.safetensors"

    def refused(changed: Mapping[str, Tensor], *, dim: int = 16) -> str:
        with pytest.raises(ClipspmError) as caught:
            save_encoder(changed, out, model=architecture, base=str(base_file), dim=dim)
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    first = next(iter(tower))
    wrong = copy.copy(tower)
    wrong[first] = torch.zeros(1, 2)
    wrong["later.weight"] = torch.zeros(2)
    assert f"{first} has shape (1, 2)" in refused(wrong)
    del wrong[first]
    assert f"{first} is missing" in refused(wrong)
    assert "no later.weight" in refused({**tower, "later.weight": torch.zeros(2)})
    assert "not finite" in refused({**tower, first: tower[first] * float("inf")})
    assert "16 values per frame, the heads take 24" in refused(tower, dim=24)
    with pytest.raises(UsageError, match=r"name it with --model"):
        save_encoder(tower, out, base=str(base_file))
    with pytest.raises(UsageError, match=r"neither a file nor a tag"):
        save_encoder(tower, out, model=architecture, base="nowhere.pt")
    with pytest.raises(UsageError, match=r"use --model ViT-B-16-quickgelu"):
        save_encoder(tower, out, model="ViT-B-16")
    out.write_text("mine")
    with pytest.raises(UsageError, match=r"exists already"):
        save_encoder(tower, out, model=architecture, base=str(base_file))
    assert out.read_text() == "mine"


def test_base_weights_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipspm.extract.weights._already_downloaded", lambda *about: False)
    monkeypatch.setattr("clipspm.extract.weights._hub_answers", lambda cfg: False)
    with torch.device("meta"):
        shapes = tower_of(open_clip.create_model("ViT-B-32-quickgelu", device="meta", load_weights=False))
    tower = {k: torch.zeros(1).expand(v.shape) for k, v in shapes.items()}  # no memory
    with pytest.raises(ClipspmError, match=r"ViT-B-32-quickgelu.*--base FILE.*--heads-only"):
        save_encoder(tower, tmp_path / "run" / "e.safetensors")
    assert not list(tmp_path.iterdir())
