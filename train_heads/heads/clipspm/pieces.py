"""Attention over tokens that are sums of fewer vectors, without projecting each token.

A LayerNorm divides each token by its own deviation ``s``; everything else before the softmax is
linear. So where tokens are known sums of P *pieces*, ``x_i = sum_p c_ip * y_p``, only the pieces are
projected. With ``A`` the projection times the norm's weight, minus its mean over channels::

    norm(x_i) @ W.T = sum_p (c_ip / s_i) * (A @ y_p)  +  W @ bias of the norm

The output projection, head by head, is also applied before the mixing and so to pieces only. This is less to
multiply where pieces are fewer than tokens. The reference is :class:`Block`.

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
        """Concatenate these and others along an axis that both have."""
        return Projected(*(torch.cat(pair, dim) for pair in zip(self, other, strict=True)))


def worth_it(block: Block, x: Tensor) -> bool:
    """Return whether ``block`` is wide enough (a value per head is D wide) and arithmetic exact enough."""
    return 4 * block.head_width >= block.dim and not torch.is_autocast_enabled(x.device.type)


def project(block: Block, x: Tensor) -> Projected:
    """Apply the projections of ``block`` to vectors ``x`` [..., D]."""
    weight = block.qkv.weight * block.norm.weight
    weight = weight - weight.mean(1, keepdim=True)
    rows = x.reshape(-1, x.shape[-1])  # contiguous: strided rows would be many small products
    q, k, v = F.linear(rows, weight).unflatten(-1, (3, block.heads, -1)).unbind(-3)
    out = block.out.weight.unflatten(1, (block.heads, -1)).permute(1, 2, 0)  # [h, d, D]
    values = (v.transpose(0, 1) @ out).transpose(0, 1)  # [rows, h, D]
    return Projected(*(y.unflatten(0, x.shape[:-1]) for y in (q, k, values)))


def compare(block: Block, p: Projected) -> Pieces:
    """Score pieces against each other, from their projections [..., P]; the axes before P become B."""
    q, k = p.q.transpose(-3, -2), p.k.transpose(-3, -2).contiguous()  # read twice
    of_query, _, _ = block.qkv.weight.chunk(3)
    bias = F.linear(block.norm.bias, of_query).view(block.heads, -1, 1)  # the norm's bias in queries
    scores, lift = q @ k.transpose(-1, -2), (k @ bias).squeeze(-1)
    return Pieces(scores.flatten(0, -4), lift.flatten(0, -3), p.values.flatten(0, -4))


def output_bias(block: Block) -> Tensor:
    """Return [D]: the bias of the output projection, plus the norm's bias through values and output."""
    _, _, of_value = block.qkv.weight.chunk(3)
    bias: Tensor = block.out(F.linear(block.norm.bias, of_value))
    return bias


def inverse_deviation(block: Block, x: Tensor) -> Tensor:
    """Return ``1 / s`` of tokens [..., D] as the norm of ``block`` computes it, [..., 1]."""
    return (x.var(-1, unbiased=False, keepdim=True) + block.norm.eps).rsqrt()


def attend(block: Block, pieces: Pieces, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend, and project the output, for tokens ``weights`` [B, n, P] (``c / s``) of ``pieces``: [B, n, D].

    ``mask`` [n, n]: 0 where a token may look, minus infinity where not.
    """
    share = share_of(block, pieces.scores, pieces.lift, weights, mask)
    out = share.permute(0, 2, 3, 1).flatten(2) @ pieces.values.flatten(1, 2)
    return out + output_bias(block)


def share_of(
    block: Block, scores: Tensor, lift: Tensor, weights: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return how much of each piece each token takes, [B, h, n, P]; scores [B, h, P, P], lift [B, h, P]."""
    weights = weights.unsqueeze(-3)
    logits = (weights @ scores + lift.unsqueeze(-2)) @ weights.transpose(-1, -2) * block.head_width**-0.5
    if mask is not None:
        logits = logits + mask
    return logits.softmax(-1) @ weights


def group_mask(*lengths: int, like: Tensor) -> Tensor:
    """Return the mask [n, n] that separates consecutive groups of tokens of these ``lengths``."""
    group = torch.arange(len(lengths), device=like.device).repeat_interleave(
        torch.tensor(lengths, device=like.device)
    )
    return like.new_zeros(()).masked_fill(group != group.unsqueeze(1), float("-inf"))
