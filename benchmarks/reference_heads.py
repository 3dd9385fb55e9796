"""CLIP-SPM as published code computes it, to measure against: one episode at a time and nothing saved.

All four passes of semantic fusion (real and fake branch, for queries and for supports) whether or not a loss
reads them, motion from every filtered frame, OTAM element by element with autograd through it, Bernoulli
dropout. Plain and, at that, not wasteful: whole videos per operation, three projections and two batched
products per attention, no synchronisation. Its parameters have the names of the authors' checkpoints.

Shapes: S support videos, Q query videos, N of either, C ways, T frames, D width.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipspm.cache.spec import FINAL
from clipspm.train_heads.evaluation.predict import Batch


class FeedForward(nn.Module):
    """Linear, GELU, dropout, Linear, dropout."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        y: Tensor = self.net(x)
        return y


class Attention(nn.Module):
    """``heads`` of 256, projections without bias, an output projection with one, dropout behind it."""

    def __init__(self, dim: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        inner = heads * width
        self.heads, self.scale = heads, width**-0.5
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, D] -> [B, n, D]."""
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v)
        )
        share = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        y: Tensor = self.to_out((share @ v).transpose(1, 2).flatten(2))
        return y


class PreNorm(nn.Module):
    """LayerNorm, then ``fn``."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, D] -> [B, n, D]."""
        y: Tensor = self.fn(self.norm(x))
        return y


class Transformer(nn.Module):
    """One block: ``x = x + Attn(LN(x)); y = x + FFN(x)``."""

    def __init__(self, dim: int, dropout: float, ffn_dropout: float) -> None:
        super().__init__()
        attention = PreNorm(dim, Attention(dim, 8, 256, dropout))
        self.layers = nn.ModuleList([nn.ModuleList([attention, FeedForward(dim, 2048, ffn_dropout)])])

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, D] -> [B, n, D]."""
        for attend, feed in self.layers:  # type: ignore[misc]
            x = x + attend(x)
            x = x + feed(x)
        return x


class TokenPrompt(nn.Module):
    """The generator of a prompt token."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.mlp = FeedForward(dim, 2048, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        y: Tensor = self.mlp(x)
        return y


class ReferenceHead(nn.Module):
    """``official`` CLIP-SPM for one episode."""

    def __init__(
        self,
        dim: int,
        *,
        rho_v: float = 0.5,
        rho_t: float = 1.5,
        slope: float = 0.0025,
        alpha: float = 0.2,
        dropout: float = 0.2,
        ffn_dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.alpha = alpha

        def gate(width: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(dim, width), nn.LeakyReLU(slope), nn.Linear(width, dim), nn.Sigmoid()
            )

        self.motion_conv1 = nn.Conv1d(dim, dim, 3, padding=1)
        self.motion_conv2 = nn.Conv1d(dim, dim, 3, padding=1)
        self.gate_text = gate(int(rho_t * dim))
        self.gate_vision = gate(int(rho_v * dim))
        self.context1 = Transformer(dim, dropout, ffn_dropout)  # PADM's
        self.context2 = Transformer(dim, dropout, ffn_dropout)  # SF's
        self.token_tr = TokenPrompt(dim, ffn_dropout)
        self.mo_alpha1 = nn.Parameter(torch.ones([]))
        self.scale = nn.Parameter(torch.ones(1))

    def motion(self, v: Tensor) -> Tensor:
        """[N, T, D] -> [N, D]."""
        filtered = self.motion_conv2(self.motion_conv1(v.transpose(1, 2))).transpose(1, 2)
        forward = filtered[:, 1:] - v[:, :-1]
        backward = filtered[:, :-1] - v[:, 1:]
        return (0.5 * (forward + backward)).mean(1)

    def fuse(self, v: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [N, T, D] and prompts [N, D] -> fused frames and tokens, shaped alike."""
        token = prompt.unsqueeze(1)
        pushed = self.alpha * (token * self.gate_text(token)) + v * self.gate_vision(v)
        fused = self.context2(torch.cat([token, pushed], dim=1))
        return fused[:, 1:], fused[:, 0]

    def prompt(self, v: Tensor, text: Tensor) -> Tensor:
        """Frames [N, T, D] and the episode's texts [C, D] -> [N, D]."""
        generated: Tensor = self.token_tr(text.mean(0) * v.mean(dim=(1, 2)).unsqueeze(-1))
        return generated

    def forward(
        self, support: Tensor, support_labels: Tensor, query: Tensor, text: Tensor, query_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [Q, C] and ``L_motion`` [] of ``support`` [S, T, D] and ``query`` [Q, T, D].

        ``query_labels`` feed the real branch, whose losses this recipe does not use; no logit reads it.
        """
        motion = support.new_zeros(())
        for v in (support, query):
            shallow = self.motion(v)
            refined, token = self.fuse(v, shallow)
            motion = motion + (self.motion(refined) - token).square().sum(-1).mean()

        modulated_s, _ = self.fuse(support, text[support_labels])  # real
        self.fuse(support, self.prompt(support, text))  # fake
        self.fuse(query, text[query_labels])  # real
        modulated_q, _ = self.fuse(query, self.prompt(query, text))  # fake
        prototypes = torch.stack([modulated_s[support_labels == c].mean(0) for c in range(len(text))])
        d1 = alignment(prototypes, modulated_q)

        shots = [int((support_labels == c).sum()) for c in range(len(text))]
        total = modulated_q.sum(0)
        tokens = torch.stack(
            [
                (modulated_s[support_labels == c].sum(0) + total) / (k + len(query))
                for c, k in enumerate(shots)
            ]
        )
        anchor = tokens.mean(0, keepdim=True)
        left = self.context1(torch.cat([tokens, modulated_s]).transpose(0, 1)).transpose(0, 1)
        right = self.context1(torch.cat([anchor, modulated_q]).transpose(0, 1)).transpose(0, 1)
        refined_s = left[len(text) :]
        prototypes = torch.stack([refined_s[support_labels == c].mean(0) for c in range(len(text))])
        d2 = alignment(prototypes, right[1:])
        d3 = alignment(left[: len(text)], right[:1])
        return -(0.5 * d1 + d2 + d3), motion

    def alone(
        self, support: Tensor, support_labels: Tensor, query: Tensor, text: Tensor, query_labels: Tensor
    ) -> Tensor:
        """Inductive logits [Q, C]: as many episodes of one query."""
        rows = [
            self(support, support_labels, q.unsqueeze(0), text, label.unsqueeze(0))[0]
            for q, label in zip(query, query_labels, strict=True)
        ]
        return torch.cat(rows)

    def loss(self, logits: Tensor, motion: Tensor, query_labels: Tensor) -> Tensor:
        """The loss of one episode, []."""
        return F.cross_entropy(logits, query_labels, reduction="sum") / 16 + 0.001 * self.mo_alpha1 * motion


def alignment(prototypes: Tensor, queries: Tensor) -> Tensor:
    """Bidirectional OTAM of [C, T, D] and [Q, T, D], [Q, C]."""
    (c, t, _), q = prototypes.shape, len(queries)
    x, y = queries.flatten(0, 1), prototypes.flatten(0, 1)
    dist = 1 - x @ y.T / (x.norm(dim=-1).unsqueeze(1) * y.norm(dim=-1) + 0.01)
    dist = dist.view(q, t, c, t).transpose(1, 2)  # [Q, C, T, T]
    return cumulative(dist) + cumulative(dist.transpose(-1, -2))


def cumulative(dist: Tensor, smoothing: float = 0.5) -> Tensor:
    """OTAM in one direction, element by element for all pairs at once: [Q, C, L, M] -> [Q, C]."""
    dist = F.pad(dist, (1, 1))
    cum = torch.zeros_like(dist)
    for m in range(1, dist.shape[3]):
        cum[:, :, 0, m] = dist[:, :, 0, m] + cum[:, :, 0, m - 1]

    def softmin(*cells: Tensor) -> Tensor:
        return -smoothing * torch.log(sum((torch.exp(-c / smoothing) for c in cells), torch.zeros([])))

    last = dist.shape[3] - 1
    for l in range(1, dist.shape[2]):  # noqa: E741
        for m in range(1, last + 1):
            before = [cum[:, :, l - 1, m - 1], cum[:, :, l, m - 1]]
            if m in (1, last):
                before.append(cum[:, :, l - 1, m])
            cum[:, :, l, m] = dist[:, :, l, m] + softmin(*before)
    return cum[:, :, -1, -1]


def episodes_of(batch: Batch) -> Iterable[tuple[Tensor, ...]]:
    """The arguments of :meth:`ReferenceHead.forward`, one episode after the other."""
    of = batch.episode
    arguments = of.support[FINAL], of.support_labels, of.query[FINAL], of.text, batch.query_labels
    return zip(*arguments, strict=True)


def adam(head: ReferenceHead, **options: Any) -> torch.optim.Optimizer:
    """The recipe's optimiser as it is written there."""
    return torch.optim.Adam(head.parameters(), lr=1e-5, betas=(0.5, 0.999), weight_decay=5e-5, **options)
