"""Semantic fusion (arXiv 2512.19036), shared by HSMR and SPM: a prompt token fused into a video's frames."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clipspm.train_heads.heads.clipspm import pieces
from clipspm.train_heads.heads.parts.attention import Block


class Fused(NamedTuple):
    """Output of semantic fusion: ``frames`` [E, N, T, D] and the prompt's ``token`` [E, N, D]."""

    frames: Tensor
    token: Tensor

    def part(self, rows: slice) -> "Fused":
        """Return the videos ``rows`` of N."""
        return Fused(self.frames[:, rows], self.token[:, rows])


class Gate(nn.Module):
    """``sigmoid(MLP(x))`` with one hidden layer of ``width`` and LeakyReLU(``slope``)."""

    def __init__(self, dim: int, width: int, slope: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, width)
        self.output = nn.Linear(width, dim)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Return gates in (0, 1), [..., D] -> [..., D]."""
        hidden = nn.functional.leaky_relu(self.hidden(x), self.slope)
        return torch.sigmoid(self.output(hidden))


class SemanticFusion(nn.Module):
    """``SF(v, p)``: self-attention over the prompt, followed by gated frames + alpha * gated prompt.

    Gated frames do not depend on the prompt and are passed in (:meth:`gate_frames`), so that several prompts
    for one video share them and one call of the block.
    """

    def __init__(
        self, dim: int, block: Block, *, rho_v: float, rho_t: float, slope: float, alpha: float
    ) -> None:
        super().__init__()
        self.gate_prompt = Gate(dim, int(rho_t * dim), slope)
        self.gate_vision = Gate(dim, int(rho_v * dim), slope)
        self.block = block
        self.alpha = alpha

    def gate_frames(self, v: Tensor) -> Tensor:
        """Return ``v * g_v`` for frames [..., D]."""
        gated: Tensor = v * self.gate_vision(v)
        return gated

    def forward(self, *pairs: tuple[Tensor, Tensor]) -> list[Fused]:
        """Fuse each pair of gated frames [E, N, T, D] and prompts [E, N, D].

        Consecutive pairs with the same tensor of gated frames project it once.
        """
        outputs: list[Fused] = []
        plain: list[Tensor] = []
        shared = [list(group) for _, group in groupby(pairs, key=lambda pair: id(pair[0]))]
        fewer = self.training and any(len(group) > 1 for group in shared)
        if fewer and pieces.worth_it(self.block, pairs[0][0]):
            for group in shared:
                outputs += self._fuse_several(group[0][0], [prompts for _, prompts in group])
            return outputs
        for gated, prompts in pairs:
            pushed = self._gate_prompts(prompts)
            plain.append(torch.cat([prompts.unsqueeze(2), gated + pushed.unsqueeze(2)], dim=2))
        return [Fused(x[:, :, 1:], x[:, :, 0]) for x in self.block(*plain)]

    def _gate_prompts(self, prompts: Tensor) -> Tensor:
        """Return ``alpha * (p * g_p)`` for prompts [..., D]."""
        return self.alpha * (prompts * self.gate_prompt(prompts))

    def fuse_projected(self, gated: Tensor, projected: pieces.Projected, prompts: Tensor) -> Tensor:
        """Return fused frames [E, N, T, D], given the projections of ``gated`` [E, N, T, D]."""
        sequences, attention = self._attended(gated, [prompts], projected)
        frames: Tensor
        (frames,) = self.block(sequences[:, :, 0, 1:], attention=attention[:, :, 0, 1:])  # without the token
        return frames

    def _fuse_several(self, gated: Tensor, prompts: Sequence[Tensor]) -> list[Fused]:
        """Fuse M prompts into each video."""
        sequences, attention = self._attended(gated, prompts)
        (done,) = self.block(sequences.flatten(1, 2), attention=attention)
        return [Fused(x[:, :, 1:], x[:, :, 0]) for x in done.view_as(sequences).unbind(2)]

    def _attended(
        self, gated: Tensor, prompts: Sequence[Tensor], known: pieces.Projected | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return tokens and what they attend to, both [E, N, M, 1+T, D].

        The pieces of each video are its T gated frames, M gated prompts and M prompts.
        """
        e, n, t, _ = gated.shape
        m = len(prompts)
        stacked = torch.stack(list(prompts), dim=2)  # [E, N, M, D]
        pushed = self._gate_prompts(stacked)
        sequences = torch.cat(
            [stacked.unsqueeze(3), gated.unsqueeze(2) + pushed.unsqueeze(3)], dim=3
        )  # [E, N, M, 1+T, D]
        summed = torch.cat([pushed, stacked] if known is not None else [gated, pushed, stacked], dim=2)
        members = gated.new_zeros(m, 1 + t, t + 2 * m)
        for i in range(m):
            members[i, 0, t + m + i] = 1
            members[i, 1:, :t] = torch.eye(t, device=members.device)
            members[i, 1:, t + i] = 1
        block = self.block
        weights = pieces.inverse_deviation(block, sequences).view(e * n, -1, 1) * members.flatten(0, 1)
        projected = pieces.project(block, summed)
        if known is not None:
            projected = known.cat(projected, dim=2)
        compared = pieces.compare(block, projected)
        mask = pieces.group_mask(*[1 + t] * m, like=gated)
        attention = pieces.attend(block, compared, weights, mask)
        return sequences, attention.view_as(sequences)
