"""Leaks that are planted on purpose: the guard of each trips."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.heads.base import HeadOutput, Scorer
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.registry import HEADS, build_head
from clipspm.train_heads.runs import Run
from clipspm.train_heads.training import train as train_module
from clipspm.train_heads.training.loop import Trainer
from clipspm.train_heads.training.selection import Selector
from clipspm.train_heads.training.train import train
from tests.support.synthetic import ByHand, FakeCache, fake_cache, silent, tiny_config

CACHE = fake_cache(noise=1.5)


def moved(name: str, split: str) -> FakeCache:
    """The cache with a class put into another split."""
    return replace(
        CACHE,
        class_splits={**CACHE.class_splits, name: split},
        good=tuple(replace(v, split=split) if v.class_name == name else v for v in CACHE.good),
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_test_class_in_training_or_selection_trips(tmp_path: Path, split: str) -> None:
    """Trained with the class, tested on it under other splits."""
    train(moved("test class 00", split), tiny_config(episodes=16), tmp_path / "r", log=silent)
    with pytest.raises(ClipspmError, match=f"leak: test class 'test class 00' was in the {split} split"):
        evaluate(tmp_path / "r", CACHE, episodes=5, log=silent)


def test_a_video_of_a_test_class_among_those_that_train_trips(tmp_path: Path) -> None:
    leaky = replace(CACHE, good=(*CACHE.good[:-1], replace(CACHE.good[-1], split="train")))
    with pytest.raises(ClipspmError, match="is in split 'train' but its class 'test class 04' belongs to"):
        train(leaky, tiny_config(episodes=16), tmp_path / "r", log=silent)


class Told(ByHand):
    """Does what the contract does not allow: its logits change where losses are asked for."""

    def run(self, episode: Episode, query_labels: Tensor | None = None, *rest: Any) -> HeadOutput:
        output = super().run(episode, query_labels, *rest)
        if query_labels is not None:
            output.logits = output.logits + 9 * one_hot(query_labels, output.logits.shape[-1])
        return output


class Counting(ByHand):
    """Knows that queries come class by class."""

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        logits = super().combine(episode, scores)
        return logits + 9 * torch.eye(logits.shape[-1])


@pytest.mark.parametrize(("head", "what"), [(Told, "labels"), (Counting, "order")])
def test_a_query_label_in_the_head_trips(head: type[ByHand], what: str) -> None:
    with pytest.raises(ClipspmError, match=f"leak: the head's logits change with the {what} of the queries"):
        evaluate(head(), CACHE, episodes=20, log=silent, device="cpu")


@pytest.mark.parametrize("name", sorted(HEADS))
def test_no_head_trips_the_guard_of_labels(name: str) -> None:
    """Every head of the registry, with weights that matter."""
    torch.manual_seed(0)
    config = tiny_config(head=name).head_config
    head = build_head(name, dim=16, frames=4, config=config, layer_dims={})
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    evaluate(head, CACHE, episodes=4, queries=2, log=silent, device="cpu")


def test_selection_on_the_test_split_trips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_test(data: Data, *rest: Any) -> tuple[FeatureBank, Selector]:
        return data.bank("train"), Selector("val", data.bank("test"), None)

    monkeypatch.setattr(train_module, "_banks", on_test)
    with pytest.raises(ClipspmError, match="leak: the test split is asked for while a head is trained"):
        train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)


def test_reading_the_test_split_on_the_way_trips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with data that evaluations shared, and read it from, before."""
    data = Data(CACHE, "cpu")
    evaluate(ByHand(), data, episodes=5, log=silent)
    original = Trainer.step

    def step(self: Trainer, number: int) -> dict[str, float]:
        data.bank("test")
        return original(self, number)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(ClipspmError, match="leak: the test split is asked for"):
        train(data, tiny_config(episodes=16), tmp_path / "r", log=silent)
    assert data.bank("test").pool.names == Pool.from_cache(CACHE, "test").names  # open again


def test_a_result_says_what_its_weights_were_selected_on(tmp_path: Path) -> None:
    train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)
    facts = evaluate(tmp_path / "r", CACHE, episodes=5, log=silent).facts
    run = Run.open(tmp_path / "r")
    chosen = run.results()["training"]["val_episodes"]["hash"]
    assert (facts["selection"], facts["selection_episodes"]) == ("val", chosen)
    assert (run.path / f"episodes-{chosen}.npz").is_file()


@pytest.mark.parametrize("how", ["raised", "shrunk and raised", "tiny"])
def test_scale_and_offset_hide_no_leak(how: str) -> None:
    class Hidden(Counting):
        def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
            logits = super().combine(episode, scores)
            return {"raised": logits + 1e5, "shrunk and raised": logits * 1e-4 + 1, "tiny": logits * 1e-8}[
                how
            ]

    with pytest.raises(ClipspmError, match="leak: the head's logits change with the order"):
        evaluate(Hidden(), CACHE, episodes=20, log=silent, device="cpu")


def test_an_inductive_head_that_looks_at_the_other_queries_trips() -> None:
    class Centring(ByHand):
        def scores(self, episode: Episode) -> dict[str, Tensor]:
            queries = episode.query["final"] - episode.query["final"].mean(1, keepdim=True)
            return super().scores(replace(episode, query={"final": queries}))

    with pytest.raises(ClipspmError, match="leak: inductive logits of a query change with the other queries"):
        evaluate(Centring(), CACHE, episodes=20, log=silent, device="cpu")
    evaluate(Centring(), CACHE, episodes=20, protocols=("transductive",), log=silent, device="cpu")


def test_what_a_head_recalls_comes_in_no_order_with_the_text_of_its_class() -> None:
    class Recalling(ByHand):
        def recall(self, videos: Mapping[str, Tensor], text: Tensor) -> None:
            self.seen = videos["final"].numpy(), text.numpy()

    head = Recalling()
    evaluate(head, CACHE, episodes=200, shots=2, log=silent, device="cpu")
    bank = Data(CACHE, "cpu").bank("test")
    videos, text = head.seen
    order = [int((bank.gather(np.arange(40)[None], 4)[0].numpy() == v).all((1, 2)).argmax()) for v in videos]
    assert sorted(order) == list(range(40)) != order
    assert (text == bank.text[bank.labels[torch.tensor(order)]].numpy()).all()


def test_scores_that_depend_on_what_is_recalled_trip() -> None:
    class Averaging(ByHand):
        def recall(self, videos: Mapping[str, Tensor], text: Tensor) -> Scorer:
            seen = videos["final"]
            near = (seen + seen.roll(1, 0) + seen.roll(-1, 0)) / 3

            class Near:
                layers, wide = ("final",), False

                def __call__(near_: Self, episode: Episode, support: Tensor, query: Tensor) -> Tensor:
                    return self.run(replace(episode, query={"final": near[query]})).logits

            return Near()

    with pytest.raises(ClipspmError, match="leak: the head scores otherwise with what it recalls"):
        evaluate(Averaging(), CACHE, episodes=200, log=silent, device="cpu")


def test_closed_in_a_closed_split_stays_closed() -> None:
    data = Data(CACHE, "cpu")
    with data.closed("test"):
        with data.closed("test"):
            pass
        with pytest.raises(ClipspmError, match="leak: the test split is asked for"):
            data.bank("test")
    assert data.bank("test").pool.split == "test"


def test_another_device_than_that_of_the_data_is_refused() -> None:
    with pytest.raises(UsageError, match="the features are on cpu, but meta was asked for|is not available"):
        evaluate(ByHand(), Data(CACHE, "cpu"), episodes=5, log=silent, device="meta")
