"""What the text tower reads: its own number of tokens, other tokenizers, and never a silent cut."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from clipspm import ClipEncoder
from clipspm.errors import ClipspmError
from clipspm.extract import ExtractConfig, extract
from clipspm.extract.encoder import Encoder
from clipspm.extract.models import check_model
from tests.support.media import TINY_CONFIG, numbered_frames, tiny_local_dir, write_video

WORDS = ["a", "photo", "of", "wave", "run", "махать", "бежать", "挥手", "跑", "agiter", "courir", "up"]


def short(context: int, **more: object) -> dict:
    text = {**TINY_CONFIG["text_cfg"], "context_length": context}
    return {**TINY_CONFIG, "text_cfg": {**text, **more}}


def with_words(folder: Path, *, ends: bool) -> str:
    """A tower that reads with a tokenizer of transformers, of words in several scripts."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if ends:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A [EOS]", special_tokens=[("[EOS]", 2)]
        )
    config = short(8, vocab_size=len(vocabulary), hf_tokenizer_name="somebody/words", pool_type="last")
    model = tiny_local_dir(folder, {**config, "custom_text": True})
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("context", [16, 32, 64, 77])
def test_as_many_tokens_are_read_as_the_model_has(tmp_path: Path, context: int) -> None:
    encoder = Encoder(tiny_local_dir(tmp_path / "t", short(context)), None, precision="fp32", device="cpu")
    assert encoder.reads == context
    fits, long = "wave " * (context - 2), "wave " * (context - 1)
    assert encoder.cut(["wave", fits, long, long]) == [long]


@pytest.mark.parametrize("ends", [True, False])
def test_tokenizers_of_transformers_are_read_and_cuts_are_seen(tmp_path: Path, ends: bool) -> None:
    model = with_words(tmp_path / "words", ends=ends)
    encoder = Encoder(model, None, precision="fp32", device="cpu")
    fits = " ".join(["wave"] * (8 - ends))
    assert encoder.reads == 8 and encoder.cut(["挥手", fits, f"{fits} up", "бежать"]) == [f"{fits} up"]
    names = ["wave", "махать", "挥手", "agiter"]
    found = encoder.encode_text(names, ["a photo of {}"])[:, 0]
    reference, tokenizer = open_clip.create_model(model).eval(), open_clip.get_tokenizer(model)
    with torch.no_grad():
        expected = reference.encode_text(tokenizer([f"a photo of {name}" for name in names]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_that_is_not_there_is_said_before_torch_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_words(tmp_path / "words", ends=True)
    monkeypatch.setattr(
        "clipspm.extract.models.find_spec",
        lambda name, real=__import__("importlib.util").util.find_spec: (
            None if name == "transformers" else real(name)
        ),
    )
    for name in (model, "ViT-B-16-SigLIP", "xlm-roberta-base-ViT-B-32"):
        pretrained = None if name == model else "webli"
        with pytest.raises(ClipspmError, match=r"pip install 'clipspm\[transformers\]'") as caught:
            check_model(name, pretrained)
        assert "\n" not in str(caught.value)
    check_model("ViT-B-16", "openai")


def test_a_tokenizer_runs_no_code(tmp_path: Path) -> None:
    model = tiny_local_dir(tmp_path / "t", short(8, tokenizer_kwargs={"trust_remote_code": True}))
    with pytest.raises(ClipspmError, match="its tokenizer runs code of its own"):
        check_model(model, None)


def test_prompts_that_are_cut_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    for name in ("run", "a very long name of a class"):
        write_video(tmp_path / "v" / name / "a.mp4", numbered_frames(4))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("{}\n" + "\n".join(f"{'so ' * n}it is {{}}" for n in range(1, 8)))
    model = tiny_local_dir(tmp_path / "t", short(8))
    config = ExtractConfig(
        dataset="folder", videos=tmp_path / "v", model=model, device="cpu", frames=1, dry_run=True,
        prompts=str(prompts),
    )  # fmt: skip
    said: list[str] = []
    extract(config, on_start=said.append)
    cut = [line for line in said if "cut to" in line]
    assert cut[0] == "note: cut to the 8 tokens that local-dir:t reads: 'a very long name of a class'"
    assert len(cut) == 6 and cut[-1].endswith("more texts are cut to 8 tokens")
    said.clear()
    extract(replace(config, prompts=None, limit=1), on_start=said.append)
    encoder = ClipEncoder(model, device="cpu", store=False).fit()
    with pytest.warns(
        UserWarning, match="cut to the 8 tokens that local-dir:t reads: 'a photo of a very long"
    ):
        encoder.encode_text(["run", "a very long name of a class"])


def test_scale_and_bias_are_those_of_the_model(tmp_path: Path) -> None:
    plain = Encoder(tiny_local_dir(tmp_path / "a"), None, precision="fp32", device="cpu").identity()
    assert plain["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-5) and plain["logit_bias"] is None
    config = {**TINY_CONFIG, "init_logit_bias": -12.5, "nonscalar_logit_scale": True}
    sigmoid = Encoder(tiny_local_dir(tmp_path / "b", config), None, precision="fp32", device="cpu").identity()
    assert sigmoid["logit_bias"] == -12.5
    assert json.dumps(sigmoid["logit_scale"])
