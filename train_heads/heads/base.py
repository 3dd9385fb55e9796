"""The contract that every head keeps: named evidence, the logits made of it, and losses for training.

Shapes: E episodes, S support videos, Q query videos, C classes (ways), T frames, D feature width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.checks import check_episode
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.parts.otam import full
from clipspm.train_heads.heads.protocol import Protocol

#: the reference sums the cross-entropy over queries and over the 16 episodes of an optimiser step, and
#: divides by 16; so one episode contributes its sum / 16, however many queries it has
EPISODES_PER_STEP = 16

#: (episode, rows of its supports [E, S], rows of its queries [E, Q]) -> logits; see :meth:`Head.recall`
Scorer = Callable[[Episode, Tensor, Tensor], Tensor]


class Evidence(dict[str, Tensor]):
    """Scores by name, each [E, Q, C], higher is better.

    ``kept``: what else the head computed, for its own :meth:`Head.losses`.
    """

    def __init__(self, scores: Mapping[str, Tensor], kept: Any = None) -> None:
        super().__init__(scores)
        self.kept = kept


@dataclass
class HeadOutput:
    """``logits`` [E, Q, C], the ``evidence`` they are made of, and named auxiliary ``losses``, each [E].

    Without E where the call had none.
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    evidence: Mapping[str, Tensor] = field(default_factory=dict)


class Head(nn.Module):
    """Scores query videos of width ``dim`` against the classes of an episode.

    A subclass implements :meth:`scores`; it may override :meth:`combine` and, to learn from more than the
    cross-entropy of its logits, :meth:`losses` and :meth:`episode_loss`. What it reads and what is chosen for
    it after training is declared as data, on the class or the instance.
    """

    #: cached layers that the head reads
    layers: tuple[str, ...] = (FINAL,)
    #: fewest frames per video
    min_frames: int = 1
    #: weights of the evidence in the logits; 1 where not named
    weights: Mapping[str, float] = {}
    #: buffers (scalars) to choose on validation classes after training, each with its candidates
    tunable: Mapping[str, tuple[float, ...]] = {}
    #: parameters that nothing reads, there for checkpoints of others
    unused: tuple[str, ...] = ()
    #: whether to look at the arguments before scoring (one synchronisation with the device per call)
    check: bool = True

    def __init__(self, *, dim: int, layer_dims: Mapping[str, int] | None = None) -> None:
        """``dim``: D of the final layer; ``layer_dims``: widths of the other cached layers."""
        super().__init__()
        self.dim = dim
        self.layer_dims = {**(layer_dims or {}), FINAL: dim}

    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        """Score the queries of checked episodes: evidence by name, each [E, Q, C], higher is better.

        Inductive scores of a query must not depend on the other queries.
        """
        raise NotImplementedError

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        """Make logits [E, Q, C] of the evidence: its sum, weighted by :attr:`weights`."""
        weighted = [score * self.weights.get(name, 1.0) for name, score in scores.items()]
        return sum(weighted[1:], start=weighted[0])

    def losses(
        self, episode: Episode, scores: Evidence, query_labels: Tensor, base: BaseClasses | None
    ) -> dict[str, Tensor]:
        """Name the terms to learn from besides the cross-entropy, each [E]. Called in training only.

        ``scores``: what :meth:`scores` returned. ``query_labels`` [E, Q]: rows of the episode's text.
        """
        return {}

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        """The training loss of each episode, [E]: cross-entropy summed over queries / 16, plus the losses."""
        return sum(output.losses.values(), start=matching_loss(output.logits, query_labels))

    def recall(self, supports: Tensor, text: Tensor, queries: Tensor) -> Scorer | None:
        """A faster way to score many episodes of the same videos, in evaluation mode; None if there is none.

        ``supports`` [N, T, D] with the class text of each, ``text`` [N, D]; ``queries`` [M, T, D]. The scorer
        is then told which of these rows an episode is made of.
        """
        return None

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train."""
        return any(p.requires_grad for p in self.parameters())

    def run(
        self,
        episode: Episode,
        query_labels: Tensor | None = None,
        base: BaseClasses | None = None,
    ) -> HeadOutput:
        """Score ``episode``; with ``query_labels`` [E, Q], compute the losses too.

        Neither ``query_labels`` nor ``base`` reaches the logits. Raises ValueError naming the argument, the
        value found and the value needed.
        """
        if self.check:
            dims = {layer: self.layer_dims[layer] for layer in self.layers}
            check_episode(episode, query_labels, base, dims=dims, min_frames=self.min_frames)
        whole = episode.batched()
        found = self.scores(whole)
        evidence = found if isinstance(found, Evidence) else Evidence(found)
        logits, losses = self.combine(whole, evidence), {}
        if query_labels is not None:
            if base is not None:
                rows = episode.widened(base.support), episode.widened(base.query)
                base = BaseClasses(full(base.text), *rows)
            losses = self.losses(whole, evidence, episode.widened(query_labels), base)
        if episode.has_batch:
            return HeadOutput(logits, losses, evidence)
        first = ({name: x[0] for name, x in part.items()} for part in (losses, evidence))
        return HeadOutput(logits[0], *first)

    def forward(
        self,
        support: Tensor | Mapping[str, Tensor],
        support_labels: Tensor,
        query: Tensor | Mapping[str, Tensor],
        text: Tensor,
        protocol: Protocol = "inductive",
        query_labels: Tensor | None = None,
        base: BaseClasses | None = None,
    ) -> HeadOutput:
        """:meth:`run` on plain tensors: ``support`` [E, S, T, D], ``query`` [E, Q, T, D], ``text`` [E, C, D].

        A mapping of layers to tensors gives more than the final one. The leading E may be absent, from all of
        them at once; supports and queries come in any order.
        """
        layers = ({FINAL: x} if isinstance(x, Tensor) else x for x in (support, query))
        supports, queries = layers
        return self.run(Episode(supports, queries, support_labels, text, protocol), query_labels, base)

    def width_of(self, layer: str, setting: str = "layer") -> int:
        """The width of the cached ``layer`` that ``setting`` names; ValueError says how to cache another."""
        if layer not in self.layer_dims:
            others = [name for name in self.layer_dims if name != FINAL]
            raise ValueError(
                f"{setting}: found {layer!r}; needed a cached layer "
                f"({', '.join(others) or 'none besides the last'}): extract with --layers "
                f"{','.join([*others, layer, FINAL])} to have it"
            )
        return self.layer_dims[layer]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` [..., N, C] against ``labels`` [..., N], shape [..., N]."""
    flat = full(logits).flatten(0, -2)
    nll = nn.functional.cross_entropy(flat, labels.flatten().long(), reduction="none")
    return nll.view(labels.shape)


def matching_loss(logits: Tensor, query_labels: Tensor) -> Tensor:
    """Cross-entropy of each episode's queries, summed and divided by 16: [E, Q, C] and [E, Q] -> [E]."""
    return cross_entropy(logits, query_labels).sum(-1) / EPISODES_PER_STEP
