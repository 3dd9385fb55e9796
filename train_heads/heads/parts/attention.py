"""Layers that several heads share: the attention block, its feed-forward network, positions."""

import math
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipspm.train_heads.heads.parts.dropout import Dropout


class FeedForward(nn.Module):
    """Linear, exact GELU, dropout, Linear, dropout; width D -> ``width`` -> D."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, width)
        self.contract = nn.Linear(width, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        hidden = self.dropout(F.gelu(self.expand(x)))
        return self.dropout(self.contract(hidden))


class Block(nn.Module):
    """Self-attention of the form ``x = q + Attn(LN(q)); y = x + FFN(x)``, without a norm before the FFN.

    ``heads`` of ``head_width`` each (the inner width need not be D); queries, keys and values have no bias,
    the output projection has one; ``dropout`` after it, ``ffn_dropout`` twice inside the FFN. With
    ``zero_init`` the block starts as the identity.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        head_width: int | None = None,
        ffn_width: int = 2048,
        dropout: float = 0.2,
        ffn_dropout: float = 0.05,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if head_width is None:
            if dim % heads:
                raise ValueError(f"heads: found {heads}; needed a divisor of D = {dim}")
            head_width = dim // heads
        inner = heads * head_width
        self.dim, self.heads, self.head_width = dim, heads, head_width
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.out = nn.Linear(inner, dim)
        self.dropout = Dropout(dropout)
        self.ffn = FeedForward(dim, ffn_width, ffn_dropout)
        if zero_init:
            for last in (self.out, self.ffn.contract):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, *sequences: Tensor, attention: Tensor | None = None) -> tuple[Tensor, ...]:
        """Let each sequence [..., n_i, D] attend to itself; the layers that work per token run once for all.

        ``attention`` [..., D]: the attention output of all tokens in order, if it is known already.
        """
        rows = torch.cat([x.flatten(0, -2) for x in sequences])
        if attention is None:
            attention = self.out(self._attended(rows, *sequences))
        done = self.feed(rows, attention.flatten(0, -2))
        split = done.split([_rows(x) for x in sequences])
        return tuple(y.view_as(x) for y, x in zip(split, sequences, strict=True))

    def _attended(self, rows: Tensor, *sequences: Tensor) -> Tensor:
        """Return what ``rows`` [N, D] of ``sequences`` attend to, [N, inner]."""
        # consecutive sequences of the same length share one attention call
        runs = [(n, sum(map(_rows, xs))) for n, xs in groupby(sequences, key=lambda x: x.shape[-2])]
        parts = (
            self.project(rows).split([count for _, count in runs]) if len(runs) > 1 else [self.project(rows)]
        )
        attended = [
            self.attend(p.unflatten(0, (-1, n))).flatten(0, 1) for p, (n, _) in zip(parts, runs, strict=True)
        ]
        return torch.cat(attended) if len(runs) > 1 else attended[0]

    def project(self, x: Tensor) -> Tensor:
        """Return queries, keys and values of tokens: [..., D] -> [..., 3 * inner]."""
        projected: Tensor = self.qkv(self.norm(x))
        return projected

    def attend(self, projected: Tensor) -> Tensor:
        """Attend within each sequence: [B, n, 3 * inner] -> [B, n, inner]."""
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if projected.device.type == "cpu" and projected.dtype == torch.bfloat16 and projected.requires_grad:
            # torch's fused kernel goes backward about four times slower than this for sequences of ten
            attended = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(1, 2).flatten(-2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the block's output [..., D] for tokens ``x`` [..., D] that attended to [..., inner]."""
        return self.feed(x, self.out(attended))

    def feed(self, x: Tensor, attention: Tensor) -> Tensor:
        """Add ``attention`` to tokens ``x`` and apply the feed-forward network, all [..., D]."""
        x = x + self.dropout(attention)
        y: Tensor = x + self.ffn(x)
        return y


def _rows(x: Tensor) -> int:
    return math.prod(x.shape[:-1])


def sinusoidal_positions(frames: int, dim: int, like: Tensor) -> Tensor:
    """Return [T, D]: sine on even channels, cosine on odd, base 10000 (arXiv 1706.03762, section 3.5)."""
    steps = torch.arange(frames, device=like.device, dtype=like.dtype).unsqueeze(1)
    even = torch.arange(0, dim, 2, device=like.device, dtype=like.dtype)
    angles = steps * torch.exp(even * (-math.log(10000.0) / dim))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]
