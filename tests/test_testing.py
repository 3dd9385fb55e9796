"""The test that every head passes: it passes a sound head, and names what is wrong with each broken one."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipspm.testing import check_head
from clipspm.train_heads.heads import BaseClasses, Episode, Evidence, Head, HeadOutput
from clipspm.train_heads.heads.parts.text_scores import cosine


class Sound(Head):
    """A learned map, then cosines with the class means; the rest overrides it."""

    tunable = {"share": (0.0, 1.0)}  # noqa: RUF012
    share: Tensor

    def __init__(self, *, dim: int, frames: int, width: int = 8, layer_dims: Any = None) -> None:
        super().__init__(dim=dim, layer_dims=layer_dims)
        self.lift = nn.Linear(dim, width)
        self.register_buffer("share", torch.tensor(1.0))

    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        support, query = (self.lift(videos["final"].mean(2)) for videos in (episode.support, episode.query))
        means = episode.one_hot.mT @ support / episode.shots[..., None]
        return {"look": cosine(query, means)}

    def look(self, episode: Episode) -> Tensor:
        """The evidence, for those that spoil it."""
        return Sound.scores(self, episode)["look"]


class Layers(Sound):
    """Reads the layer 3 too, as it says."""

    layers = ("3", "final")

    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        return {
            "look": self.look(episode),
            "early": -episode.query["3"].mean((2, 3)).unsqueeze(-1).expand(-1, -1, episode.ways),
        }


def test_a_sound_head_passes_and_randomness_is_as_before() -> None:
    before = torch.random.get_rng_state()
    check_head(f"{__name__}:Sound", settings={"width": 3}, dim=5, frames=1)
    check_head(f"{__name__}:Layers", layer_dims={"3": 7})
    check_head("tests.support.synthetic:LinearHead", settings={"shallow": "3"}, layer_dims={"3": 7})
    assert torch.equal(torch.random.get_rng_state(), before)


BROKEN: dict[type[Sound], str] = {}


def says(message: str) -> Any:
    """A broken head, and a part of what is said of it."""

    def keep(head: type[Sound]) -> type[Sound]:
        BROKEN[head] = message
        return head

    return keep


@says("layers are ('3',); 'final' must be among them")
class NoFinal(Sound):
    layers = ("3",)


@says("reads layer '3', which its layers ('final',) do not name")
class NotNamed(Layers):
    layers = ("final",)


@says("logits have shape (10, 3); needed [E, Q, C] = [2, 5, 3]")
class Flat(Sound):
    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"].flatten(0, 1)


@says("scores names no evidence")
class NoEvidence(Sound):
    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        return {}

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return self.look(episode)


@says("evidence is called ''; needed a name")
class Nameless(Sound):
    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        return {"": self.look(episode)}


@says("evidence 'look' has shape (2, 3, 5); needed [E, Q, C] = [2, 5, 3]")
class Turned(Sound):
    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        return {"look": self.look(episode).mT}

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"].mT


@says("logits of finite features are not finite")
class Infinite(Sound):
    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"] / 0


@says("logits differ from call to call")
class Random(Sound):
    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"] + torch.rand(())


@says("logits of an episode depend on the others of the batch (by ")
class WholeBatch(Sound):
    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"] - scores["look"].mean(0)


@says("inductive logits of a query depend on the other queries (by ")
class OtherQueries(Sound):
    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"] - scores["look"].mean(1, keepdim=True)


@says("inductive logits depend on the order of supports (by ")
class SupportOrder(Sound):
    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"] + episode.support["final"][:, :1].mean((1, 2, 3)).view(-1, 1, 1)


@says("transductive logits depend on the order of queries (by ")
class QueryOrder(Sound):
    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"].cumsum(1) if episode.protocol == "transductive" else scores["look"]


class Same(Sound):
    """Gives the evidence itself as logits, which losses then write into."""

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"]


@says("logits change with the labels of the queries")
class Cheating(Same):
    def losses(
        self, episode: Episode, scores: Evidence, query_labels: Tensor, base: BaseClasses | None
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            scores["look"] += nn.functional.one_hot(query_labels, episode.ways)
        return {}


@says("logits change with the base classes")
class KnowingMore(Same):
    def losses(
        self, episode: Episode, scores: Evidence, query_labels: Tensor, base: BaseClasses | None
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            scores["look"] += 0 if base is None else base.text.mean()
        return {}


@says("episode_loss is ")
class OneLoss(Sound):
    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        return super().episode_loss(output, query_labels).mean()


@says("size is nan; needed one finite number for each of 2 episodes")
class NoNumber(Sound):
    def losses(
        self, episode: Episode, scores: Evidence, query_labels: Tensor, base: BaseClasses | None
    ) -> dict[str, Tensor]:
        return {"size": torch.tensor(float("nan"))}

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        return super().episode_loss(HeadOutput(output.logits), query_labels)


@says("the loss of an episode depends on the others of the batch")
class SharedLoss(Sound):
    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        loss = super().episode_loss(output, query_labels)
        return loss - loss.mean() if loss.dim() else loss


@says("the loss has no gradient")
class Detached(Sound):
    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"].detach()


@says("no gradient reaches extra")
class Idle(Sound):
    def __init__(self, *, dim: int, frames: int) -> None:
        super().__init__(dim=dim, frames=frames)
        self.extra = nn.Parameter(torch.ones(()))


@says("lift.weight is among the unused, and is none of them")
class NotUnused(Sound):
    unused = ("lift.weight",)


@says("a new head with this one's state_dict gives other logits")
class Forgetful(Sound):
    def __init__(self, *, dim: int, frames: int) -> None:
        super().__init__(dim=dim, frames=frames)
        self.shift = torch.randn(())

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"] + self.shift


@says("tunable 'temperature' is none; needed a scalar buffer")
class NoBuffer(Sound):
    tunable = {"temperature": (1.0, 2.0)}  # noqa: RUF012


@says("tunable 'share' has shape (2,); needed a scalar buffer")
class Two(Sound):
    def __init__(self, *, dim: int, frames: int) -> None:
        super().__init__(dim=dim, frames=frames)
        self.register_buffer("share", torch.ones(2))


@says("tunable 'share' is not kept in the state")
class NotKept(Sound):
    def __init__(self, *, dim: int, frames: int) -> None:
        super().__init__(dim=dim, frames=frames)
        self.register_buffer("share", torch.tensor(1.0), persistent=False)


@says("tunable 'share' has candidates (1.0, 1); needed two or more that differ")
class NoChoice(Sound):
    tunable = {"share": (1.0, 1)}  # noqa: RUF012


@says("logits of half-precision features are torch.float64; needed torch.float32")
class Wide(Sound):
    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return scores["look"].double()


@says("inductive logits differ with recall")
class Misremembering(Sound):
    def recall(self, videos: Mapping[str, Tensor], text: Tensor) -> Any:
        return lambda episode, support_rows, query_rows: torch.zeros(*query_rows.shape, episode.ways)


@says("its constructor reads values, which tensors of the meta device lack")
class Reading(Sound):
    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.size = float(self.lift.weight.abs().sum())


class PassingOn(Head):
    """Takes what the contract gives by ``**more``, and annotates with what is not there when it runs."""

    def __init__(self, width: "Elsewhere" = 4, **more: Any) -> None:  # noqa: F821
        super().__init__(**more)
        self.width = width

    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        support, query = (videos["final"].mean(2) for videos in (episode.support, episode.query))
        return {"look": cosine(query, episode.one_hot.mT @ support / episode.shots[..., None])}


def test_a_constructor_may_pass_on_what_it_is_given() -> None:
    check_head(f"{__name__}:PassingOn", settings={"width": 5})


@pytest.mark.parametrize("head", BROKEN, ids=lambda head: head.__name__)
def test_a_broken_head_is_told_what_is_wrong_in_one_line(head: type[Sound]) -> None:
    with pytest.raises(AssertionError) as failed:
        check_head(f"{__name__}:{head.__name__}", layer_dims={"3": 7})
    said = str(failed.value)
    assert said.startswith(f"head {__name__}:{head.__name__}: ")
    assert BROKEN[head] in said
    assert "\n" not in said


def test_settings_that_are_swallowed_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "clipspm.testing.build_head", lambda name, dim, frames, **rest: Sound(dim=dim, frames=frames)
    )
    with pytest.raises(AssertionError, match="head any: takes a setting that it does not have"):
        check_head("any")


class NotCached(Sound):
    layers = ("final", "9")


def test_a_layer_that_is_not_cached_is_refused_when_the_head_is_built() -> None:
    with pytest.raises(ValueError, match=r"layers: found '9'; needed a cached layer \(3\)"):
        check_head(f"{__name__}:NotCached", layer_dims={"3": 7})


class Raising(Sound):
    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        raise RuntimeError("of its own")


def test_what_a_head_raises_itself_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="of its own"):
        check_head(f"{__name__}:Raising")
