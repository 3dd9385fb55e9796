"""What a head is called with: a batch of episodes, its class means, and the checks of the arguments.

Shapes: E episodes, S support videos, Q query videos, C ways, T frames, D feature width, B base classes.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from clipspm.train_heads.heads.clipspm.recall import Recalled
from clipspm.train_heads.heads.parts.otam import full
from clipspm.train_heads.heads.protocol import Protocol


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
    """The arguments of a head's call; see :meth:`Head.forward`. :meth:`batched` adds a missing E."""

    support: Tensor
    support_labels: Tensor
    query: Tensor
    text: Tensor
    protocol: Protocol = "inductive"
    query_labels: Tensor | None = None
    base: BaseClasses | None = None
    support_shallow: Tensor | None = None
    query_shallow: Tensor | None = None
    support_recalled: Recalled | None = None
    query_recalled: Recalled | None = None

    @property
    def has_batch(self) -> bool:
        """Whether the leading E is there."""
        return self.support.dim() == 4

    @property
    def ways(self) -> int:
        """C."""
        return self.text.shape[-2]

    @property
    def videos(self) -> Tensor:
        """Supports, then queries, [E, S+Q, T, D]."""
        return torch.cat([self.support, self.query], dim=1)

    @cached_property
    def one_hot(self) -> Tensor:
        """Class membership of the supports, [E, S, C]."""
        classes = torch.arange(self.ways, device=self.support_labels.device)
        return (self.support_labels.unsqueeze(-1) == classes).to(self.support.dtype)

    @cached_property
    def shots(self) -> Tensor:
        """Supports per class, [E, C]."""
        return self.one_hot.sum(1)

    def batched(self) -> "Episode":
        """The same with the leading E, integer labels and features in float32 or wider."""

        def widened(x: Tensor) -> Tensor:
            x = full(x) if x.is_floating_point() else x.long()
            return x if self.has_batch else x.unsqueeze(0)

        tensors: dict[str, Any] = {
            f.name: widened(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        base = self.base
        if base is not None:
            base = BaseClasses(full(base.text), widened(base.support), widened(base.query))
        return replace(self, base=base, **tensors)

    def class_sum(self, x: Tensor) -> Tensor:
        """Sum of ``x`` [E, ..., S, T, D] over each class's supports, [E, ..., C, T, D]."""
        with torch.autocast(x.device.type, enabled=False):
            flat = full(x).flatten(-2)
            member = self.one_hot.to(flat.dtype).transpose(1, 2)
            member = member.view(member.shape[0], *[1] * (flat.dim() - 3), *member.shape[1:])
            return (member @ flat).unflatten(-1, x.shape[-2:])

    def class_mean(self, x: Tensor) -> Tensor:
        """Mean of ``x`` [E, ..., S, T, D] over each class's supports, [E, ..., C, T, D]."""
        return self.class_sum(x) / self.shots.view(self.shots.shape[0], *[1] * (x.dim() - 4), -1, 1, 1)

    def text_of(self, labels: Tensor) -> Tensor:
        """The class text of each video, [E, N, D], for ``labels`` [E, N]."""
        return self.text.gather(1, labels.unsqueeze(-1).expand(-1, -1, self.text.shape[-1]))
