"""The contract that every head keeps: named evidence, the logits made of it, and losses for training.

Shapes: E episodes, S support videos, Q query videos, C classes (ways), T frames, D feature width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol as Interface

from torch import Tensor, nn

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.checks import check_episode
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.evidence import Evidence, weighted_sum
from clipspm.train_heads.heads.parts.otam import full
from clipspm.train_heads.heads.protocol import Protocol

#: the reference sums the cross-entropy over queries and over the 16 episodes of an optimiser step, and
#: divides by 16; so one episode contributes its sum / 16, however many queries it has
EPISODES_PER_STEP = 16


@dataclass
class HeadOutput:
    """``logits`` [E, Q, C], the ``evidence`` they are made of, and named auxiliary ``losses``, each [E].

    All of them lack E if the call had none.
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    evidence: Mapping[str, Tensor] = field(default_factory=dict)


class Scorer(Interface):
    """What :meth:`Head.recall` returns: it scores episodes of videos that it knows.

    ``layers``: the features that an episode has to bring nevertheless. ``wide``: whether it takes the memory
    of a head with parameters.
    """

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def wide(self) -> bool: ...

    def __call__(self, episode: Episode, support: Tensor, query: Tensor) -> Tensor:
        """Return logits [E, Q, C] of the rows ``support`` [E, S] and ``query`` [E, Q] of its videos."""
        ...


class Head(nn.Module):
    """Scores query videos of width ``dim`` against the classes of an episode.

    A subclass implements :meth:`scores`; it may override :meth:`combine` and, to learn from more than the
    cross-entropy of its logits, :meth:`losses` and :meth:`episode_loss`. The layers it reads and the buffers
    to tune after training are class or instance attributes.
    """

    #: cached layers that the head reads
    layers: tuple[str, ...] = (FINAL,)
    #: fewest frames per video
    min_frames: int = 1
    #: weights of the evidence in the logits; 1 where not named
    weights: Mapping[str, float] = {}
    #: scalar buffers to tune on validation classes after training, each with its candidates
    tunable: Mapping[str, tuple[float, ...]] = {}
    #: those of them that take the first candidate that is not clearly worse than the best
    reluctant: tuple[str, ...] = ()
    #: whether what it learns counts only as far as it helps with classes that did not train it
    needs_unseen: bool = False
    #: whether a softmax of its logits is a probability as it is, trained or not
    probable: bool = False
    #: whether it reads the class texts: a cache of an encoder without a text tower has none
    needs_text: bool = True
    #: parameters that nothing reads, kept for the checkpoints of others
    unused: tuple[str, ...] = ()
    #: whether to check the arguments before scoring (one synchronisation with the device per call)
    check: bool = True

    def __init__(
        self, *, dim: int, frames: int | None = None, layer_dims: Mapping[str, int] | None = None
    ) -> None:
        """``dim``: D of the final layer; ``frames``: T; ``layer_dims``: widths of the other cached layers."""
        super().__init__()
        self.dim = dim
        self.layer_dims = {**(layer_dims or {}), FINAL: dim}

    def scores(self, episode: Episode) -> Mapping[str, Tensor]:
        """Score the queries of checked episodes: evidence by name, each [E, Q, C], higher is better.

        Inductive scores of a query must not depend on the other queries.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement scores")

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        """Make logits [E, Q, C] of the evidence: its sum, weighted by :attr:`weights`."""
        return weighted_sum(scores, self.weights)

    def losses(
        self, episode: Episode, scores: Evidence, query_labels: Tensor, base: BaseClasses | None
    ) -> dict[str, Tensor]:
        """Return terms to learn from besides the cross-entropy, by name, each [E]. Called in training only.

        ``scores``: what :meth:`scores` returned. ``query_labels`` [E, Q]: rows of the episode's text.
        """
        return {}

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        """Return each episode's loss, [E]: cross-entropy summed over queries / 16, plus :meth:`losses`."""
        return sum(output.losses.values(), start=matching_loss(output.logits, query_labels))

    def calibrate(self, shots: int, episodes: Iterable[tuple[Episode, Tensor]]) -> None:
        """Measure what scoring with ``shots`` needs to know, on ``episodes`` of training classes.

        Called before training, and before a head that was not trained is scored, with the query labels [E, Q]
        of each batch; from one shot up to five, as far as the classes allow. Most heads need nothing.
        """
        return

    def start_training(self) -> None:
        """Prepare for the first training step."""
        return

    def recall(self, videos: Mapping[str, Tensor], text: Tensor) -> Scorer | None:
        """Prepare faster scoring of many episodes of the same videos, in evaluation mode, or return None.

        ``videos``: the head's layers of each, [N, T, D]; ``text`` [N, D]: the text of each one's class, for
        when it is a support: the scores of queries are compared with those of :meth:`scores`, which has none.
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
            return HeadOutput(logits, losses, dict(evidence))
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
        """Do :meth:`run` on tensors: ``support`` [E, S, T, D], ``query`` [E, Q, T, D], ``text`` [E, C, D].

        For more than the final layer, pass mappings from layers to tensors. The leading E may be missing from
        all of them at once; supports and queries come in any order.
        """
        layers = ({FINAL: x} if isinstance(x, Tensor) else x for x in (support, query))
        supports, queries = layers
        return self.run(Episode(supports, queries, support_labels, text, protocol), query_labels, base)

    def width_of(self, layer: str, setting: str = "layer") -> int:
        """Return the width of the cached ``layer`` that ``setting`` names; ValueError if there is none."""
        if layer not in self.layer_dims:
            others = [name for name in self.layer_dims if name != FINAL]
            raise ValueError(
                f"{setting}: found {layer!r}; needed a cached layer "
                f"({', '.join(others) or 'none besides the last'}): extract with --layers "
                f"{','.join([*others, layer, FINAL])} to have it"
            )
        return self.layer_dims[layer]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of ``logits`` [..., N, C] against ``labels`` [..., N]: [..., N]."""
    flat = full(logits).flatten(0, -2)
    nll = nn.functional.cross_entropy(flat, labels.flatten().long(), reduction="none")
    return nll.view(labels.shape)


def matching_loss(logits: Tensor, query_labels: Tensor) -> Tensor:
    """Return the cross-entropy of each episode, summed over queries and divided by 16: [E]."""
    return cross_entropy(logits, query_labels).sum(-1) / EPISODES_PER_STEP
