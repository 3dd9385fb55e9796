"""The way of a cache through an ablation: which files are handed it, up to the first training step."""

import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest

import clipspm
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.experiments.ablate import ablate
from clipspm.train_heads.training.loop import Trainer
from tests.support.synthetic import fake_cache, real_cache, silent, tiny_config

ROOT = Path(clipspm.__file__).parent


class FirstStep(Exception):
    """The training began."""


def test_five_files_are_handed_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(real_cache(tmp_path / "c.zarr", fake_cache()), "cpu")
    handed: set[str] = set()
    built: Counter[str] = Counter()

    def look(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(ROOT)) or code.co_name == "<module>":
            return
        built[code.co_qualname] += 1
        given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(frame.f_locals.get(name) is way for name in given for way in (data, data.cache)):
            handed.add(Path(code.co_filename).relative_to(ROOT).as_posix())

    def step(*_: object) -> None:
        sys.setprofile(None)
        raise FirstStep

    monkeypatch.setattr(Trainer, "step", step)
    sys.setprofile(look)
    try:
        ablate(data, tiny_config(episodes=16), out_dir=tmp_path / "a", drops=["padm"], episodes=9, log=silent)
    except FirstStep:
        pass
    finally:
        sys.setprofile(None)
    assert handed == {
        "cache/reader.py",  # itself
        "train_heads/episodes/data.py",
        "train_heads/experiments/ablate.py",
        "train_heads/experiments/cells.py",
        "train_heads/training/train.py",
    }
    assert built["Pool.from_cache"] == 0  # the pools are made where the cache is opened
    assert built["FeatureBank.read"] == 2  # train and val, each once
