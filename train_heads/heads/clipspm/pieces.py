"""Attention over tokens that are sums of fewer vectors, without projecting each token.

A LayerNorm divides each token by its own deviation ``s``; everything else in front of the soft maximum is
linear. So where tokens are known sums of P *pieces*, ``x_i = sum_p c_ip * y_p``, only the pieces go through
the projections, ``A`` being the projection with the norm's weight in it and its mean over channels taken
off::

    norm(x_i) @ W.T = sum_p (c_ip / s_i) * (A @ y_p)  +  W @ bias of the norm

The output projection comes before the mixing as well, head by head, so it too sees pieces only. Where pieces
are fewer than tokens, this is less to multiply; the plain form beside it is :class:`Block`.

Shapes: B sequences, n tokens of each, P pieces of each, h heads of width d, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspm.train_heads.heads.parts.attention import Block


class Pieces(NamedTuple):
    """What attention needs of pieces: ``scores`` [B, h, P, P] between them, ``values`` [B, P, h, D].

    ``lift`` [B, h, P]: what the norm's bias adds to the scores of each.
    """

    scores: Tensor
    lift: Tensor
    values: Tensor


class Projected(NamedTuple):
    """Queries, keys [..., h, d] and projected values [..., h, D] of vectors, before any norm."""

    q: Tensor
    k: Tensor
    values: Tensor

    def cat(self, other: "Projected", dim: int) -> "Projected":
        """These and others behind them, along an axis that both have."""
        return Projected(*(torch.cat(pair, dim) for pair in zip(self, other, strict=True)))


def worth_it(block: Block, x: Tensor) -> bool:
    """Whether ``block`` is wide enough (a value per head is D wide) and the arithmetic is exact enough."""
    return 4 * block.head_width >= block.dim and not torch.is_autocast_enabled(x.device.type)


def project(block: Block, x: Tensor) -> Projected:
    """Vectors ``x`` [..., D] through the projections of ``block``."""
    weight = block.qkv.weight * block.norm.weight
    weight = weight - weight.mean(1, keepdim=True)
    rows = x.reshape(-1, x.shape[-1])  # strided rows would be many small products
    q, k, v = F.linear(rows, weight).unflatten(-1, (3, block.heads, -1)).unbind(-3)
    out = block.out.weight.unflatten(1, (block.heads, -1)).permute(1, 2, 0)  # [h, d, D]
    values = (v.transpose(0, 1) @ out).transpose(0, 1)  # [rows, h, D]
    return Projected(*(y.unflatten(0, x.shape[:-1]) for y in (q, k, values)))


def compare(block: Block, p: Projected) -> Pieces:
    """Pieces that may meet, [..., P] of :func:`project`; what is in front becomes B."""
    q, k = p.q.transpose(-3, -2), p.k.transpose(-3, -2).contiguous()  # read twice
    of_query, _, _ = block.qkv.weight.chunk(3)
    bias = F.linear(block.norm.bias, of_query).view(block.heads, -1, 1)  # what the norm's becomes in queries
    scores, lift = q @ k.transpose(-1, -2), (k @ bias).squeeze(-1)
    return Pieces(scores.flatten(0, -4), lift.flatten(0, -3), p.values.flatten(0, -4))


def bias_behind(block: Block) -> Tensor:
    """What the norm's bias becomes behind the output projection, with that one's own: [D]."""
    _, _, of_value = block.qkv.weight.chunk(3)
    bias: Tensor = block.out(F.linear(block.norm.bias, of_value))
    return bias


def deviation(block: Block, x: Tensor) -> Tensor:
    """``1 / s`` of tokens [..., D] as the norm of ``block`` computes it, [..., 1]."""
    return (x.var(-1, unbiased=False, keepdim=True) + block.norm.eps).rsqrt()


def attend(block: Block, pieces: Pieces, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention and output projection for tokens ``weights`` [B, n, P] (``c / s``) of ``pieces``: [B, n, D].

    ``mask`` [n, n]: 0 where a token may look, minus infinity where not.
    """
    share = share_of(block, pieces.scores, pieces.lift, weights, mask)
    out = share.permute(0, 2, 3, 1).flatten(2) @ pieces.values.flatten(1, 2)
    return out + bias_behind(block)


def share_of(
    block: Block, scores: Tensor, lift: Tensor, weights: Tensor, mask: Tensor | None = None
) -> Tensor:
    """How much of each piece each token takes, [B, h, n, P], from scores [B, h, P, P] and lift [B, h, P]."""
    weights = weights.unsqueeze(-3)
    logits = (weights @ scores + lift.unsqueeze(-2)) @ weights.transpose(-1, -2) * block.head_width**-0.5
    if mask is not None:
        logits = logits + mask
    return logits.softmax(-1) @ weights


def apart(*lengths: int, like: Tensor) -> Tensor:
    """The mask of neighbouring groups of tokens that do not see one another, [n, n]."""
    group = torch.arange(len(lengths), device=like.device).repeat_interleave(
        torch.tensor(lengths, device=like.device)
    )
    return like.new_zeros(()).masked_fill(group != group.unsqueeze(1), float("-inf"))
