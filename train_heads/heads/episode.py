"""What a head is called with: a batch of episodes, and the base classes that training losses may use.

Shapes: E episodes, S support videos, Q query videos, C classes (ways), T frames, D feature width, B base
classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.parts.otam import full
from clipspm.train_heads.heads.protocol import Protocol

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BaseClasses:
    """The training classes, for auxiliary losses that classify against all of them. Training only.

    ``text`` [B, D]; ``support`` [E, S] and ``query`` [E, Q]: each video's row of ``text``.
    """

    text: Tensor
    support: Tensor
    query: Tensor


@dataclass(frozen=True)
class Episode:
    """All that a head may know of E episodes: never the label of a query.

    ``support``, ``query``: features by layer, [E, S, T, D] and [E, Q, T, D]. ``support_labels`` [E, S]: rows
    of ``text`` [E, C, D], the class texts. ``protocol`` "inductive": each query is scored as if it were
    alone; "transductive": a head may look at all queries of the episode.
    """

    support: Mapping[str, Tensor]
    query: Mapping[str, Tensor]
    support_labels: Tensor
    text: Tensor
    protocol: Protocol = "inductive"

    @property
    def ways(self) -> int:
        """Number of classes C."""
        return self.text.shape[-2]

    def videos(self, layer: str = FINAL) -> Tensor:
        """Concatenate supports and queries, [E, S+Q, T, D]."""
        return torch.cat([self.support[layer], self.query[layer]], dim=1)

    @cached_property
    def one_hot(self) -> Tensor:
        """Class membership of the supports, [E, S, C]."""
        classes = torch.arange(self.ways, device=self.support_labels.device)
        return (self.support_labels.unsqueeze(-1) == classes).to(self.text.dtype)

    @cached_property
    def shots(self) -> Tensor:
        """Supports per class, [E, C]."""
        return self.one_hot.sum(1)

    def class_sum(self, x: Tensor) -> Tensor:
        """Sum ``x`` [E, ..., S, T, D] over each class's supports: [E, ..., C, T, D]."""
        with torch.autocast(x.device.type, enabled=False):
            flat = full(x).flatten(-2)
            member = self.one_hot.to(flat.dtype).transpose(1, 2)
            member = member.view(member.shape[0], *[1] * (flat.dim() - 3), *member.shape[1:])
            return (member @ flat).unflatten(-1, x.shape[-2:])

    def class_mean(self, x: Tensor) -> Tensor:
        """Average ``x`` [E, ..., S, T, D] over each class's supports: [E, ..., C, T, D]."""
        return self.class_sum(x) / self.shots.view(self.shots.shape[0], *[1] * (x.dim() - 4), -1, 1, 1)

    def text_of(self, labels: Tensor) -> Tensor:
        """Look up the class text of each video: ``labels`` [E, N] -> [E, N, D]."""
        return self.text.gather(1, labels.unsqueeze(-1).expand(-1, -1, self.text.shape[-1]))

    def mapped(self, support: Change | None = None, query: Change | None = None) -> "Episode":
        """Apply functions to the features of supports and of queries, layer by layer."""

        def each(features: Mapping[str, Tensor], change: Change | None) -> Mapping[str, Tensor]:
            return {layer: change(x) for layer, x in features.items()} if change else features

        return replace(self, support=each(self.support, support), query=each(self.query, query))

    @property
    def has_batch(self) -> bool:
        """Whether the leading E is there."""
        return self.support_labels.dim() == 2

    def batched(self) -> "Episode":
        """Add a missing E; make labels int64 and features at least float32."""
        labels, text = self.widened(self.support_labels), self.widened(self.text)
        return replace(self.mapped(self.widened, self.widened), support_labels=labels, text=text)

    def widened(self, x: Tensor) -> Tensor:
        """Convert ``x`` as :meth:`batched` does."""
        x = full(x) if x.is_floating_point() else x.long()
        return x if self.has_batch else x.unsqueeze(0)
