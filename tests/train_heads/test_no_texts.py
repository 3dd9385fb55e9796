"""A cache of an encoder without a text tower: heads that need texts refuse, the others run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipspm.cache import Cache
from clipspm.errors import UsageError
from clipspm.testing import check_head
from clipspm.train_heads import ablate, evaluate, train
from clipspm.train_heads.config import resolve_config
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.heads import build_head
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.registry import HEADS
from clipspm.train_heads.request import fit_to_cache
from clipspm.train_heads.runs import Run
from tests.support.synthetic import fake_cache, real_cache, silent, tiny_config

FAKE = fake_cache()
WITHOUT = replace(FAKE, spec=replace(FAKE.spec, has_text=False))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return real_cache(tmp_path_factory.mktemp("c") / "c.zarr", WITHOUT)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))


def test_the_default_recipe_runs_and_says_what_is_off(cache: Cache, tmp_path: Path) -> None:
    lines: list[str] = []
    train(cache, tiny_config(), tmp_path / "run", log=lines.append)
    assert (
        sum("has no text tower: clip-spm works without SPM and the evidence of texts" in x for x in lines)
        == 1
    )
    run = Run.open(tmp_path / "run")
    assert (run.config.head_config["spm"], run.config.head_config["text"]) == (False, False)
    assert not run.build_head().needs_text
    result = evaluate(tmp_path / "run", cache, episodes=20, log=silent)
    assert result.accuracies("inductive").shape == (20,)


@pytest.mark.parametrize("recipe", ["official", "paper"])
def test_other_recipes_run_without_spm(cache: Cache, tmp_path: Path, recipe: str) -> None:
    train(cache, tiny_config(recipe=recipe, episodes=16), tmp_path / "run", log=silent)
    head = Run.open(tmp_path / "run").load_head()
    assert not head.needs_text and not head.config.spm  # type: ignore[union-attr]


@pytest.mark.parametrize("name", HEADS)
def test_every_head_runs_or_refuses_in_one_line(cache: Cache, name: str) -> None:
    data = Data(cache, "cpu")
    config = resolve_config(overrides={"head": name, "way": 3, "device": "cpu"})
    if HEADS[name].texts:
        with pytest.raises(
            UsageError, match=f"head {name} needs class texts, and this cache has none"
        ) as caught:
            fit_to_cache(config, data.pools, data.spec, silent)
        assert "\n" not in str(caught.value) and "otam" in str(caught.value)
        return
    fitted = fit_to_cache(config, data.pools, data.spec, silent)
    head = build_head(name, dim=16, frames=4, config=fitted.head_config).eval()
    assert not head.needs_text
    bank = data.bank("test", head.layers)
    assert not bank.text.any()
    videos = bank.gather(np.array([[0, 8, 16]]), 4)
    labels = torch.tensor([[0, 1, 2]])
    logits = [
        head.run(Episode({"final": videos}, {"final": videos}, labels, text)).logits
        for text in (torch.zeros(1, 3, 16), torch.randn(1, 3, 16))
    ]
    assert torch.equal(*logits) and logits[0].isfinite().all()


def test_what_heads_need_is_what_the_registry_says() -> None:
    for name, entry in HEADS.items():
        if entry.texts is not None:
            assert build_head(name, dim=16, frames=4).needs_text == entry.texts, name
    for text, spm in ((True, True), (True, False), (False, True), (False, False)):
        config = {"pool": True, "text": text, "spm": spm}
        assert build_head("clip-spm", dim=16, frames=4, config=config).needs_text == (text or spm)


class Silent(Head):
    needs_text = False

    def scores(self, episode: Episode) -> dict[str, torch.Tensor]:
        near = -torch.cdist(
            episode.query["final"].mean(2), episode.class_mean(episode.support["final"]).mean(2)
        )
        return {"near": near}


class Undeclared(Silent):
    needs_text = True


class Liar(Silent):
    def scores(self, episode: Episode) -> dict[str, torch.Tensor]:
        return {"near": super().scores(episode)["near"] + episode.text.mean(-1).unsqueeze(1)}


def test_heads_of_others_say_it_themselves(cache: Cache) -> None:
    assert evaluate(Silent(dim=16), cache, episodes=9, log=silent, way=3).accuracies("inductive").shape == (
        9,
    )
    with pytest.raises(UsageError, match="head Undeclared needs class texts"):
        evaluate(Undeclared(dim=16), cache, episodes=9, log=silent)
    for kind in (Silent, Liar):
        import clipspm.train_heads.heads.peers.training_free as place

        setattr(place, kind.__name__, kind)
        try:
            path = f"{place.__name__}:{kind.__name__}"
            if kind is Silent:
                check_head(path)
            else:
                with pytest.raises(AssertionError, match="which its needs_text = False denies"):
                    check_head(path)
        finally:
            delattr(place, kind.__name__)


def test_a_run_that_reads_texts_is_not_scored_without(cache: Cache, tmp_path: Path) -> None:
    with_texts = real_cache(tmp_path / "t.zarr", FAKE)
    train(with_texts, tiny_config(episodes=16), tmp_path / "run", log=silent)
    with pytest.raises(UsageError, match="head clip-spm needs class texts, and this cache has none"):
        evaluate(tmp_path / "run", cache, episodes=9, log=silent)
    with pytest.raises(UsageError, match="head clip-fsar needs class texts"):
        ablate(cache, tiny_config(), out_dir=tmp_path / "a", heads=["clip-fsar"], log=silent)
