"""TRX (arXiv 2101.06184): cross-attention from each tuple of query frames to all tuples of a class."""

import math
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.parts.attention import sinusoidal_positions
from clipspm.train_heads.heads.parts.otam import full

#: with more tuples per clip than this, attention between them does not fit in any memory
_MOST_TUPLES = 100_000


class TupleAttention(nn.Module):
    """Attention between ordered frame tuples of one size, and distances to query-specific prototypes."""

    tuples: Tensor

    def __init__(self, dim: int, frames: int, size: int, width: int) -> None:
        super().__init__()
        if math.comb(frames, size) > _MOST_TUPLES:
            raise ValueError(f"frames: found {frames}; needed fewer, there are too many sets of {size}")
        self.register_buffer("tuples", torch.tensor([*combinations(range(frames), size)]), persistent=False)
        self.key = nn.Linear(size * dim, width)
        self.value = nn.Linear(size * dim, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, support: Tensor, query: Tensor, one_hot: Tensor) -> Tensor:
        """Score ``query`` [E, Q, T, D] against ``support`` [E, S, T, D], ``one_hot`` [E, S, C]: [E, Q, C]."""
        (e, s), q, n = support.shape[:2], query.shape[1], len(self.tuples)
        rows = torch.cat([support, query], dim=1)[:, :, self.tuples].flatten(-2)  # [E, S+Q, n, size*D]
        keys, values = self.norm(self.key(rows)), self.value(rows)
        with torch.autocast(rows.device.type, enabled=False):
            keys, values = full(keys), full(values)
            sk, qk = keys[:, :s].flatten(1, 2), keys[:, s:].flatten(1, 2)  # [E, S*n, width], [E, Q*n, width]
            sv, qv = values[:, :s].flatten(1, 2), values[:, s:].flatten(1, 2)
            share = self._class_softmax(qk @ sk.mT * sk.shape[-1] ** -0.5, one_hot.to(keys.dtype), n)
            # |v - sum_j a_j w_j|^2 = |v|^2 - 2 sum_j a_j v.w_j + sum_jk a_j a_k w_j.w_k, so that no prototype
            # of every (query tuple, class) has to be written down; a_j a_k only counts within a class
            member = one_hot.to(keys.dtype).repeat_interleave(n, dim=1)  # [E, S*n, C]
            gram = sv @ sv.mT * (member @ member.mT)
            cross = share * (share @ gram - 2 * (qv @ sv.mT))
            distance = qv.square().sum(-1, keepdim=True) + cross @ member  # [E, Q*n, C]
            return -distance.view(e, q, n, -1).mean(2)

    @staticmethod
    def _class_softmax(scores: Tensor, one_hot: Tensor, n: int) -> Tensor:
        """Return the softmax of ``scores`` [E, Q*n, S*n] over all tuples of the same class's supports."""
        per_support = scores.unflatten(-1, (-1, n))
        level = per_support.logsumexp(-1)  # [E, Q*n, S]
        outside = one_hot.mT.unsqueeze(1) == 0  # [E, 1, C, S]
        of_class = level.unsqueeze(2).masked_fill(outside, float("-inf")).logsumexp(-1)  # [E, Q*n, C]
        total = of_class @ one_hot.mT  # of each support's class, [E, Q*n, S]
        return (per_support - total.unsqueeze(-1)).exp().flatten(-2)


class TRX(Head):
    """Mean over set sizes of -(squared distance of query tuples to attended prototypes) / number of tuples.

    Source: arXiv 2101.06184, section 3: frame pairs and triples, sinusoidal positions (times 0.1),
    ``out_dim`` 1152. In the paper the ResNet is trained too and dropout 0.1 follows the positions; here
    frames are frozen, so only keys and values learn.
    """

    needs_text = False

    def __init__(
        self,
        *,
        dim: int,
        frames: int,
        sizes: tuple[int, ...] = (2, 3),
        out_dim: int = 1152,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dim=dim)
        sizes = tuple(sizes)
        if not sizes or len(set(sizes)) < len(sizes) or not 1 <= min(sizes) <= max(sizes) <= frames:
            raise ValueError(f"sizes: found {sizes}; needed one or more of 1..{frames}, each once")
        self.frames, self.sizes = frames, sizes
        self.dropout = nn.Dropout(dropout)
        self.attentions = nn.ModuleList(TupleAttention(dim, frames, size, out_dim) for size in sizes)

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        """Return the logits [E, Q, C] of each set size."""
        support, query = episode.support[FINAL], episode.query[FINAL]
        if support.shape[2] != self.frames:
            raise ValueError(f"support: found {support.shape[2]} frames per video; needed {self.frames}")
        positions = 0.1 * sinusoidal_positions(self.frames, self.dim, support)
        support, query = self.dropout(support + positions), self.dropout(query + positions)
        found = (attention(support, query, episode.one_hot) for attention in self.attentions)
        return {f"sets of {size}": scores for size, scores in zip(self.sizes, found, strict=True)}

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([*scores.values()]).mean(0)
