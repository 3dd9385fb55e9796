"""The contract that every head keeps, CLIP-SPM and baselines alike.

Shapes: E episodes, S support videos, Q query videos, C ways, T frames, D feature width, B base classes.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Protocol = Literal["inductive", "transductive"]


@dataclass(frozen=True)
class BaseClasses:
    """The training classes, for auxiliary losses that classify against all of them. Training only.

    ``text`` [B, D]; ``support`` [E, S] and ``query`` [E, Q]: each video's row of ``text``.
    """

    text: Tensor
    support: Tensor
    query: Tensor


@dataclass
class HeadOutput:
    """``logits`` [E, Q, C] and the named auxiliary ``losses``, each [E] (or [Q, C] and [] without E)."""

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


class Head(nn.Module):
    """Scores query videos against the classes of an episode.

    Subclasses implement ``forward``. ``query_labels`` and ``base`` reach training losses only.
    """

    #: cached layer (besides ``final``) that the head also wants, or None
    shallow_layer: str | None = None

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
    ) -> HeadOutput:
        """``support`` [E,S,T,D], ``support_labels`` [E,S], ``query`` [E,Q,T,D], ``text`` [E,C,D]."""
        raise NotImplementedError

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        """The training loss of each episode, [E]: cross-entropy summed over queries / 16 by default."""
        nll = torch.nn.functional.cross_entropy(
            output.logits.flatten(0, -2), query_labels.flatten(), reduction="none"
        )
        return nll.view(query_labels.shape).sum(-1) / 16

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train."""
        return any(p.requires_grad for p in self.parameters())

    def tunable(self) -> dict[str, tuple[float, ...]]:
        """Scalar buffers to choose on validation classes after training, each with its candidates."""
        return {}
