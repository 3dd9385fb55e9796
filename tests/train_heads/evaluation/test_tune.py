"""What is tuned on validation episodes: the best, and for reluctant buffers the first that is not clearly worse."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from clipspm.train_heads import Data, EpisodeSpec, draw
from clipspm.train_heads.evaluation.predict import tune
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from tests.support.synthetic import fake_cache

CACHE = fake_cache(noise=2.0)


class Mixed(Head):
    """A share of nearest prototypes, the rest the first class; a second number changes nothing."""

    needs_text = False
    tunable = {"share": (0.0, 0.5, 1.0), "idle": (0.0, 1.0)}  # noqa: RUF012

    def __init__(self, reluctant: tuple[str, ...]) -> None:
        super().__init__(dim=16)
        self.reluctant = reluctant
        for name in self.tunable:
            self.register_buffer(name, torch.tensor(1.0))

    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        member = episode.one_hot.to(episode.text)
        means = (member.mT @ episode.support["final"].mean(2)) / member.sum(1).unsqueeze(-1)
        near = -torch.cdist(episode.query["final"].mean(2), means)
        first = torch.zeros_like(near)
        first[..., 0] = 1e-3
        return {"near": self.share * near + first}


def tuned(reluctant: tuple[str, ...]) -> dict[str, float]:
    data = Data(CACHE, "cpu")
    bank = data.bank("val")
    drawn = draw(EpisodeSpec(dataset="fake", split="val", way=5, shot=2, queries=1), bank.pool, 50)
    head = Mixed(reluctant).eval()
    found = tune(head, bank, drawn, frames=4, protocol="inductive")
    assert found == {name: float(head.get_buffer(name)) for name in head.tunable}
    return found


def test_what_is_best_is_chosen_and_a_tie_keeps_what_was() -> None:
    assert tuned(()) == {"share": 1.0, "idle": 1.0}


@pytest.mark.parametrize(
    ("reluctant", "chosen"),
    [(("idle",), (1.0, 0.0)), (("share",), (0.5, 1.0)), (("share", "idle"), (0.5, 0.0))],
)
def test_the_reluctant_take_the_first_that_is_not_clearly_worse(
    reluctant: tuple[str, ...], chosen: tuple[float, float]
) -> None:
    """A share of 0 is at chance, clearly worse; 0.5 scores as 1 does."""
    assert tuple(tuned(reluctant).values()) == chosen
