"""The list of encoders says what is so, without loading torch."""

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import timm
from open_clip.pretrained import get_pretrained_cfg

from clipspm.extract.encoder import preprocessing_of, tower_of
from clipspm.extract.encoders import describe_encoders, encoders_table
from clipspm.extract.models import check_model, has_text
from clipspm.extract.timm_towers import build_tower

ROWS = describe_encoders()


def test_names_tags_and_texts_are_those_of_open_clip() -> None:
    for row in ROWS:
        if row["model"].startswith("timm:"):
            assert row["text"] is None and not has_text(row["model"])
            continue
        config, cfg = (
            open_clip.get_model_config(row["model"]),
            get_pretrained_cfg(row["model"], row["pretrained"]),
        )
        assert cfg, (row["model"], row["pretrained"])
        assert row["width"] == config["embed_dim"] and row["input"] == config["vision_cfg"]["image_size"]
        assert row["resize_mode"] == cfg["resize_mode"] and has_text(row["model"])
        assert bool(cfg.get("quick_gelu")) == bool(config.get("quick_gelu"))  # others are refused
        text = config["text_cfg"]
        assert row["text"]["context"] == text.get("context_length", 77)
        assert row["text"]["transformers"] == ("hf_tokenizer_name" in text)
        if not row["text"]["transformers"]:
            check_model(row["model"], row["pretrained"])


def test_families_are_those_that_the_tests_extract_with() -> None:
    tested = (Path(__file__).parent / "test_towers.py").read_text("utf-8")
    for family in {row["family"] for row in ROWS}:
        assert f'"{family}"' in tested, family


@pytest.mark.parametrize(
    "name", ["timm:mobilenetv3_large_100.ra_in1k", "timm:vit_small_patch14_dinov2.lvd142m"]
)
def test_towers_of_timm_are_as_listed(name: str) -> None:
    row = next(row for row in ROWS if row["model"] == name)
    tower = build_tower(name.removeprefix("timm:"))
    about = tower_of(name, tower.visual)
    pre = preprocessing_of(tower.visual.preprocess_cfg, None, "model")
    assert (about.depth, about.tokens, pre.shape[0]) == (row["layers"], row["tokens"], row["input"])
    assert sum(p.numel() for p in tower.parameters()) == row["parameters"]
    licence = timm.get_pretrained_cfg(name.removeprefix("timm:")).license
    assert licence in (None, row["licence"].lower())  # older versions of timm do not say


def test_the_default_is_marked_and_is_the_unit_of_cost() -> None:
    (default,) = [row for row in ROWS if row["default"]]
    assert default["cost"] == 1 and default["width"] == 512
    assert len(ROWS) == len({(row["model"], row["pretrained"]) for row in ROWS}) >= 40
    assert len(encoders_table(ROWS).rows) == len(ROWS)


def test_the_command_needs_no_torch() -> None:
    code = (
        "import sys; from clipspm.__main__ import main\n"
        "sys.argv = ['clipspm', 'encoders', '--json']\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'open_clip', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["encoders"]) == len(ROWS)
