"""How much CLIP-SPM computes, in operations: what a clock would say is not repeatable, this is."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference_heads import ReferenceHead
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, draw
from clipspm.train_heads.evaluation import predict as scoring
from clipspm.train_heads.evaluation.predict import make_batch, predict
from clipspm.train_heads.heads import CLIPSPM, CLIPSPMConfig
from tests.support.synthetic import fake_cache

WAY, FRAMES, DIM = 5, 8, 32
CACHE = fake_cache({"train": WAY, "test": WAY}, per_class=8, frames=FRAMES, dim=DIM)
BANK = Data(CACHE, "cpu").bank("train")


class CountOperations(TorchDispatchMode):
    """Counts the operations that reach torch's kernels, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], object]) -> int:
    with CountOperations() as counter:
        work()
    return counter.found.total()


def flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def head() -> CLIPSPM:
    torch.manual_seed(0)
    made = CLIPSPM(DIM, CLIPSPMConfig())  # the official recipe
    made.check = False
    return made


def episodes(n: int, queries: int = 4) -> Episodes:
    return draw(EpisodeSpec(dataset="fake", split="train", way=WAY, queries=queries), BANK.pool, n)


def training_step(made: CLIPSPM, n: int) -> Callable[[], object]:
    batch = make_batch(BANK, episodes(n), FRAMES, protocol="transductive")

    def step() -> None:
        made.zero_grad()
        output = made.train().run(batch.episode, batch.query_labels)
        made.episode_loss(output, batch.query_labels).sum().backward()

    return step


def evaluation(made: CLIPSPM, n: int, protocol: Any, queries: int = 1) -> Callable[[], object]:
    drawn = episodes(n, queries)
    return lambda: predict(made, BANK, drawn, frames=FRAMES, protocol=protocol, batch=n)


def reference(n: int, queries: int, *, backward: bool) -> Callable[[], object]:
    made = ReferenceHead(DIM)
    batch = make_batch(BANK, episodes(n, queries), FRAMES)
    episode = batch.episode
    support, query = episode.support["final"], episode.query["final"]

    def run() -> None:
        for i in range(n):
            labels = batch.query_labels[i]
            with torch.set_grad_enabled(backward):
                logits, motion = made(
                    support[i], episode.support_labels[i], query[i], episode.text[i], labels
                )
            if backward:
                made.loss(logits, motion, labels).backward()

    return run


def test_a_training_step_is_as_many_operations_however_many_episodes() -> None:
    made = head()
    few, many = (operations(training_step(made, n)) for n in (2, 16))
    assert few == many
    assert many <= 1250
    assert operations(reference(1, 4, backward=True)) > 8 * many  # for one episode


@pytest.mark.parametrize("protocol", ["transductive", "inductive"])
def test_scoring_is_as_many_operations_however_many_episodes(protocol: Any) -> None:
    made = head()
    few, many = (operations(evaluation(made, n, protocol)) for n in (32, 64))
    assert few == many
    assert many <= 600


def test_more_queries_are_not_more_operations() -> None:
    made = head()
    one, four = (operations(evaluation(made, 32, "inductive", q)) for q in (1, 3))
    assert one == four


def test_products_of_a_training_step_beside_the_reference() -> None:
    """Two of four passes of semantic fusion, frames and videos projected once, motion from sums of frames."""
    ours, plain = flops(training_step(head(), 4)) / 4, flops(reference(1, 4, backward=True))
    assert plain > 1.3 * ours


def test_products_of_scoring_beside_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 64
    plain = flops(reference(1, 1, backward=False))
    made = head()
    recalled = flops(evaluation(made, n, "transductive")) / n
    monkeypatch.setattr(scoring, "_MOST_RECALLED", 0)
    anew = flops(evaluation(made, n, "transductive")) / n
    assert plain > 2 * anew
    assert plain > 3.5 * recalled
