"""The contract that every head keeps, CLIP-SPM and baselines alike.

Shapes: E episodes, S support videos, Q query videos, C ways, T frames, D feature width, B base classes.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from clipspm.train_heads.heads.checks import check_episode
from clipspm.train_heads.heads.clipspm.recall import Recalled
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.parts.otam import full
from clipspm.train_heads.heads.protocol import Protocol

#: the reference sums the cross-entropy over queries and over the 16 episodes of an optimiser step, and
#: divides by 16; so one episode contributes its sum / 16, however many queries it has
EPISODES_PER_STEP = 16


@dataclass
class HeadOutput:
    """``logits`` [E, Q, C] and the named auxiliary ``losses``, each [E] (or [Q, C] and [] without E)."""

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


class Head(nn.Module):
    """Scores query videos of width ``dim`` against the classes of an episode.

    Subclasses implement :meth:`score`. ``query_labels`` and ``base`` reach losses only, never the logits.
    """

    #: cached layer (besides ``final``) that the head also wants, or None
    shallow_layer: str | None = None
    #: width of that layer
    shallow_dim: int | None = None
    #: fewest frames per video
    min_frames: int = 1
    #: whether to look at the arguments before scoring (one synchronisation with the device per call)
    check: bool = True

    def __init__(self, *, dim: int, frames: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def forward(
        self,
        support: Tensor,
        support_labels: Tensor,
        query: Tensor,
        text: Tensor,
        protocol: Protocol = "inductive",
        query_labels: Tensor | None = None,
        *,
        base: BaseClasses | None = None,
        support_shallow: Tensor | None = None,
        query_shallow: Tensor | None = None,
        support_recalled: Recalled | None = None,
        query_recalled: Recalled | None = None,
    ) -> HeadOutput:
        """``support`` [E,S,T,D], ``support_labels`` [E,S], ``query`` [E,Q,T,D], ``text`` [E,C,D].

        The leading E may be absent, from all of them at once. Labels count the rows of ``text``; supports and
        queries come in any order. ``protocol`` "inductive" scores each query as if it were alone,
        "transductive" may look at all queries of the episode. Losses are computed in training mode and
        whenever ``query_labels`` [E,Q] is given; ``query_labels`` and ``base`` enable those that need them.
        ``*_shallow`` [E,.,T,D'] are features of :attr:`shallow_layer`; ``*_recalled`` is what :meth:`recall`
        found for the same videos, in evaluation mode.

        Raises ValueError naming the argument, the value found and the value needed.
        """
        episode = Episode(
            support,
            support_labels,
            query,
            text,
            protocol,
            query_labels,
            base,
            support_shallow,
            query_shallow,
            support_recalled,
            query_recalled,
        )
        output = self.score(self.prepared(episode))
        if episode.has_batch:
            return output
        return HeadOutput(output.logits[0], {name: loss[0] for name, loss in output.losses.items()})

    def score(self, episode: Episode) -> HeadOutput:
        """Logits [E, Q, C] and losses [E] of checked episodes that have their E."""
        raise NotImplementedError

    def recall(self, videos: Tensor, text: Tensor) -> tuple[Recalled, Recalled] | None:
        """What is alike in every episode that scores ``videos`` [N, T, D], as supports and as queries.

        ``text`` [N, D]: of the class of each, for what is known of supports. In evaluation mode and for the
        weights as they are; None where there is nothing to gain.
        """
        return None

    def recall_bytes(self, frames: int) -> int:
        """What :meth:`recall` keeps of each video of ``frames``, in bytes; 0 where it keeps nothing."""
        return 0

    def prepared(self, episode: Episode) -> Episode:
        """The episode checked (unless :attr:`check` is off), with its E, in float32 or wider."""
        if self.check:
            check_episode(episode, self)
        return episode.batched()

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        """The training loss of each episode, [E] ([] without E): cross-entropy summed over queries / 16."""
        return cross_entropy(output.logits, query_labels).sum(-1) / EPISODES_PER_STEP

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train."""
        return any(p.requires_grad for p in self.parameters())

    def tunable(self) -> dict[str, tuple[float, ...]]:
        """Scalar buffers to choose on validation classes after training, each with its candidates."""
        return {}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` [..., N, C] against ``labels`` [..., N], shape [..., N]."""
    flat = full(logits).flatten(0, -2)
    nll = nn.functional.cross_entropy(flat, labels.flatten().long(), reduction="none")
    return nll.view(labels.shape)
