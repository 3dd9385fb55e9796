"""Evaluation: the same episodes whatever the batch, results that say what they are, no leak."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, draw
from clipspm.train_heads.evaluation import predict as scoring
from clipspm.train_heads.evaluation.evaluate import evaluate
from clipspm.train_heads.evaluation.predict import batch_size, fit_temperature, predict, scored
from clipspm.train_heads.evaluation.result import load_evaluation
from clipspm.train_heads.evaluation.stats import accuracies
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.registry import build_head
from clipspm.train_heads.runs import Run
from clipspm.train_heads.training.train import train
from tests.support.synthetic import ByHand, fake_cache, real_cache, silent, tiny_config

CACHE = fake_cache(noise=1.5)


def test_accuracy_equals_a_plain_loop() -> None:
    result = evaluate(ByHand(), CACHE, episodes=30, way=4, shots=2, queries=2, log=silent, device="cpu")
    bank = Data(CACHE, "cpu").bank("test")
    spec = EpisodeSpec(dataset="fake", split="test", way=4, shot=2, queries=2)
    episodes = draw(spec, bank.pool, 30)
    features = {v.id: CACHE.arrays["final"][i, 0].astype(np.float32) for i, v in enumerate(CACHE.good)}
    expected = []
    for e in range(30):
        centres = [
            np.mean([features[bank.pool.ids[v]].mean(0) for v in episodes.support[e][2 * c : 2 * c + 2]], 0)
            for c in range(4)
        ]
        right = 0
        for q, video in enumerate(episodes.query[e]):
            mean = features[bank.pool.ids[video]].mean(0)
            right += int(np.argmin([np.linalg.norm(mean - centre) for centre in centres])) == q // 2
        expected.append(right / 8)
    assert result.accuracies("inductive").tolist() == pytest.approx(expected)
    assert result.estimate().mean == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_batch_size_changes_neither_episodes_nor_predictions(batch: int) -> None:
    head = ByHand()
    result = evaluate(head, CACHE, episodes=30, batch=batch, log=silent, device="cpu")
    assert max(head.sizes) == batch
    assert np.array_equal(
        result.predictions["inductive"],
        evaluate(ByHand(), CACHE, episodes=30, log=silent, device="cpu").predictions["inductive"],
    )


def test_order_on_disk_changes_neither_hash_nor_accuracy() -> None:
    results = [
        evaluate(ByHand(), cache, episodes=50, log=silent, device="cpu")
        for cache in (CACHE, CACHE.reordered(4))
    ]
    assert results[0].name == results[1].name
    assert results[0].accuracies().tolist() == results[1].accuracies().tolist()


def test_memory_bounds_the_batch() -> None:
    bank = Data(CACHE, "cpu").bank("test")
    small = draw(EpisodeSpec(dataset="fake", split="test"), bank.pool, 1)
    large = draw(EpisodeSpec(dataset="fake", split="test", shot=4, queries=4), bank.pool, 1)
    cpu = torch.device("cpu")
    sizes = [batch_size(e, 8, 512, p, cpu) for e in (small, large) for p in ("transductive", "inductive")]
    assert sizes == sorted(sizes, reverse=True)
    assert 1 <= sizes[-1] < sizes[0] <= 512


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "r"
    train(CACHE, tiny_config(episodes=16), path, log=silent)
    return path


def test_result_says_what_it_is(run: Path) -> None:
    result = evaluate(run, CACHE, episodes=20, log=silent)
    facts = json.loads((run / "results.json").read_text())["evaluations"][result.name]
    assert facts == json.loads(json.dumps(result.as_dict()))
    assert facts["episode_hash"] == result.episodes.hash
    assert facts["cache_fingerprint"] == CACHE.spec.fingerprint
    assert (facts["selection"], facts["way"], facts["shots"], facts["weights"]) == ("val", 3, 1, "best")
    for protocol in ("inductive", "transductive"):
        score = facts["protocols"][protocol]
        values = result.accuracies(protocol)
        assert score["accuracy"] == pytest.approx(values.mean())
        assert score["interval95"] == pytest.approx(1.96 * values.std(ddof=1) / 20**0.5)


def test_evaluation_comes_back_from_the_run(run: Path) -> None:
    result = evaluate(run, CACHE, episodes=20, seed=3, log=silent)
    loaded = load_evaluation(run, result.name)
    assert loaded.episodes.full_hash == result.episodes.full_hash
    assert loaded.as_dict() == result.as_dict()
    for protocol in result.protocols:
        assert np.array_equal(loaded.predictions[protocol], result.predictions[protocol])


def test_saved_episodes_can_be_scored_again(run: Path) -> None:
    first = evaluate(run, CACHE, episodes=20, log=silent)
    again = evaluate(
        run, CACHE.reordered(2), episodes=Episodes.load(run / f"episodes-{first.name}.npz"), log=silent
    )
    assert again.name == first.name
    assert np.array_equal(again.predictions["inductive"], first.predictions["inductive"])


def test_inductive_and_transductive_differ_where_padm_looks_at_all_queries(run: Path) -> None:
    head = Run.open(run).load_head()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    head.learned_weight.fill_(1.0)
    bank = Data(CACHE, "cpu").bank("test")
    episodes = draw(EpisodeSpec(dataset="fake", split="test"), bank.pool, 40)
    found = [predict(head, bank, episodes, frames=4, protocol=p) for p in ("inductive", "transductive")]
    assert not np.array_equal(*found)


def test_test_class_seen_in_training_is_a_leak(run: Path) -> None:
    swapped = {"train class 00": "test", "test class 00": "train"}
    leaky = replace(
        CACHE,
        class_splits={**CACHE.class_splits, **swapped},
        good=tuple(replace(v, split=swapped.get(v.class_name, v.split)) for v in CACHE.good),
    )
    with pytest.raises(ClipspmError, match="leak: test class 'train class 00' was in the train split"):
        evaluate(run, leaky, episodes=5, log=silent)


def test_another_data_set_may_be_scored(run: Path) -> None:
    other = fake_cache(dataset="other")
    assert evaluate(run, other, episodes=5, log=silent).facts["dataset"] == "other"


def test_features_of_another_width_are_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="for features of width 16, .* has 8"):
        evaluate(run, fake_cache(dim=8), episodes=5, log=silent)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"3": 10}, r"r is for features of width 12, .* has 10 \(layer 3\)"),
        ({"7": 12}, r"has no layer '3', it holds final, 7: `clipspm extract --layers 7,3,final` caches it"),
    ],
)
def test_a_shallow_layer_of_another_width_or_none_is_refused(
    tmp_path: Path, layers: dict[str, int], said: str
) -> None:
    cache = fake_cache(noise=1.5, extra_layers={"3": 12})
    config = tiny_config(episodes=16, head_config={"shallow_layer": "3"})
    train(cache, config, tmp_path / "r", log=silent)
    with pytest.raises(UsageError, match=said):
        evaluate(tmp_path / "r", fake_cache(extra_layers=layers), episodes=5, log=silent)


def test_logits_that_are_not_finite_are_an_error() -> None:
    class Broken(ByHand):
        def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
            return super().combine(episode, scores) / 0

    with pytest.raises(ClipspmError, match=r"not finite in episodes 0\.\.4"):
        evaluate(Broken(), CACHE, episodes=5, log=silent, device="cpu")


def test_run_whose_cache_is_gone_says_so(run: Path) -> None:
    with pytest.raises(ClipspmError, match="needs its cache"):
        evaluate(run, log=silent)


def test_run_without_an_evaluation_says_what_to_do(tmp_path: Path) -> None:
    train(CACHE, tiny_config(head="prototype"), tmp_path / "r", log=silent)
    with pytest.raises(ClipspmError, match="holds no evaluation yet: run `clipspm eval"):
        load_evaluation(tmp_path / "r")


def test_interrupted_run_is_not_scored(tmp_path: Path) -> None:
    train(CACHE, tiny_config(head="prototype"), tmp_path / "r", log=silent)
    for file in (tmp_path / "r").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ClipspmError, match="holds no weights yet: finish it with train-heads --resume"):
        evaluate(tmp_path / "r", CACHE, log=silent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 9}, "9-way episodes need 9 classes, the test split has 5"),
        ({"shots": 8}, r"\(test\) has 8 usable videos, 8 shots \+ 1 queries need 9"),
        ({"episodes": 0}, "0 episodes asked for"),
        ({"frames": 5}, "5 frames asked for, the cache holds 4"),
    ],
)
def test_impossible_request_is_one_clear_line(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(ByHand(), CACHE, **{"episodes": 3, "log": silent, **options})


def test_accuracy_is_per_episode() -> None:
    bank = Data(CACHE, "cpu").bank("test")
    episodes = draw(EpisodeSpec(dataset="fake", split="test", way=2, queries=2), bank.pool, 2)
    assert accuracies(np.array([[0, 0, 1, 1], [0, 1, 1, 0]]), episodes).tolist() == [1.0, 0.5]


def test_time_reversal_is_invisible_to_the_prototype_but_not_to_frames() -> None:
    """The control of the demo: without order, order-blind and ordered heads are alike."""
    cache = fake_cache({"test": 2}, noise=0.05)
    array = cache.arrays["final"]
    array[8:] = array[:8, :, ::-1]  # the second class is the first one backwards
    scores = {}
    for name in ("prototype", "otam"):
        head = build_head(name, dim=16, frames=4)
        scores[name] = evaluate(head, cache, episodes=200, way=2, log=silent, device="cpu").estimate().mean
    shuffled = evaluate(head, cache, episodes=200, way=2, log=silent, device="cpu", shuffle_time=True)
    assert scores["otam"] > 0.95
    assert scores["prototype"] < 0.7
    assert shuffled.estimate().mean < 0.8


def test_cache_on_disk_gives_what_the_one_in_memory_gives(tmp_path: Path) -> None:
    cache = real_cache(tmp_path / "c.zarr", CACHE)
    config = tiny_config(episodes=16)
    train(cache, config, tmp_path / "disk", log=silent)
    train(CACHE, config, tmp_path / "memory", log=silent)
    found = evaluate(tmp_path / "disk", episodes=20, log=silent)
    expected = evaluate(tmp_path / "memory", CACHE, episodes=20, log=silent)
    assert found.name == expected.name
    assert np.array_equal(found.predictions["inductive"], expected.predictions["inductive"])


@pytest.mark.parametrize("named", [False, True])
def test_splits_given_in_training_hold_in_evaluation(tmp_path: Path, named: bool) -> None:
    plain = real_cache(tmp_path / "c.zarr", CACHE, split="none")
    train(plain.with_splits(CACHE.class_splits), tiny_config(episodes=16), tmp_path / "r", log=silent)
    result = evaluate(tmp_path / "r", tmp_path / "c.zarr" if named else None, episodes=5, log=silent)
    assert all(name.startswith("test") for name in result.episodes.class_names)


def logits_of(head: Head, bank: FeatureBank, protocol: Any, precision: Any, *, known: bool) -> torch.Tensor:
    """Logits of 40 episodes with, or without, what the head recalls of their videos."""
    episodes = draw(EpisodeSpec(dataset="fake", split="test", queries=2), bank.pool, 40)
    with scoring.evaluating(head), scoring.autocast(bank.device, precision):
        recalled = scoring.recall_videos(head, bank, episodes, 4)
        episode = scoring.make_batch(bank, episodes, 4, protocol=protocol).episode
        if known:
            assert recalled is not None
            return recalled.logits(episode, episodes)
        return head.run(episode).logits


def scrambled(dim: int, by: float, **config: Any) -> Head:
    torch.manual_seed(0)
    head = build_head("clip-spm", dim=dim, frames=4, config=config)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(by * torch.randn_like(p))
    return head


@pytest.mark.parametrize("protocol", ["inductive", "transductive"])
def test_recalling_videos_changes_no_logit(protocol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    head, bank = (
        scrambled(16, 0.1, heads=2, head_width=8, ffn_width=24),
        Data(fake_cache(), "cpu").bank("test"),
    )
    recalled, plain = (logits_of(head, bank, protocol, "float32", known=known) for known in (True, False))
    torch.testing.assert_close(recalled, plain, rtol=1e-4, atol=1e-4)
    episodes = draw(EpisodeSpec(dataset="fake", split="test", queries=2), bank.pool, 40)
    found = predict(head, bank, episodes, frames=4, protocol=protocol, batch=16)
    assert (found == plain.argmax(-1).numpy()).all()
    monkeypatch.setattr(scoring, "_MOST_RECALLED", 0)
    assert scoring.recall_videos(head, bank, episodes, 4) is None


@pytest.mark.parametrize("protocol", ["inductive", "transductive"])
def test_recalling_videos_in_bf16_is_as_exact_as_not(protocol: Any) -> None:
    head = scrambled(64, 0.05, heads=2, head_width=32, ffn_width=96)
    bank = Data(fake_cache(dim=64), "cpu").bank("test")
    exact = logits_of(head, bank, protocol, "float32", known=True)
    recalled, plain = (
        logits_of(head, bank, protocol, "bf16", known=known).float() for known in (True, False)
    )
    assert (recalled - exact).abs().mean() < 1.25 * (plain - exact).abs().mean()
    assert (recalled - exact).abs().mean() < 0.02 * exact.std()


class Tempered(ByHand):
    """Far too sure of itself, but for a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(2.0))

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return 50 * scores["near"] / self.temperature


def test_a_temperature_makes_labels_most_likely_and_changes_no_choice() -> None:
    head, bank = Tempered(), Data(CACHE, "cpu").bank("test")
    episodes = draw(EpisodeSpec(dataset="fake", split="test"), bank.pool, 100)
    how: Any = {"frames": 4, "protocol": "inductive"}
    before = predict(head, bank, episodes, **how)
    fit_temperature(head, bank, episodes, **how)
    best = float(head.temperature)
    labels = torch.tensor(episodes.query_labels).expand(100, -1).flatten()

    def surprise(temperature: float) -> float:
        head.temperature.fill_(temperature)
        logits = torch.cat(list(scored(head, bank, episodes, **how))).flatten(0, 1)
        return float(torch.nn.functional.cross_entropy(logits, labels))

    assert best > 10
    assert surprise(best) < min(surprise(0.9 * best), surprise(1.1 * best))
    assert np.array_equal(predict(head, bank, episodes, **how), before)


def test_confidences_come_back_with_the_evaluation(tmp_path: Path) -> None:
    train(CACHE, tiny_config(episodes=16), tmp_path / "r", log=silent)
    found = evaluate(tmp_path / "r", CACHE, episodes=40, log=silent, device="cpu")
    again = load_evaluation(tmp_path / "r")
    assert found.confidences.keys() == again.confidences.keys() == {"inductive", "transductive"}
    for protocol in found.protocols:
        assert np.array_equal(found.confidences[protocol], again.confidences[protocol])
        assert found.reliability(protocol) == again.reliability(protocol)
        assert (found.confidences[protocol] >= 1 / 3 - 1e-6).all()  # the likeliest of three
