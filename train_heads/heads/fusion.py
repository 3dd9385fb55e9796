"""Semantic fusion (arXiv 2512.19036), shared by HSMR and SPM: a prompt token fused into a video's frames."""

import torch
from torch import Tensor, nn

from clipspm.train_heads.heads.blocks import Block


class Gate(nn.Module):
    """``sigmoid(MLP(x))`` with one hidden layer of ``width`` and LeakyReLU(``slope``)."""

    def __init__(self, dim: int, width: int, slope: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, width)
        self.output = nn.Linear(width, dim)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D] in (0, 1)."""
        hidden = nn.functional.leaky_relu(self.hidden(x), self.slope)
        return torch.sigmoid(self.output(hidden))


class SemanticFusion(nn.Module):
    """``SF(v, p)``: self-attention over the prompt and, behind it, gated frames + alpha * gated prompt.

    A video's gated frames do not depend on the prompt, so they are an argument of their own
    (:meth:`gate_frames`): several prompts for one video gate it once, and all go through the block together.
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
        """``v * g_v`` for frames [..., D]."""
        gated: Tensor = v * self.gate_vision(v)
        return gated

    def forward(self, *pairs: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For each (gated frames [E, N, T, D], prompts [E, N, D]): fused frames and tokens, shaped alike."""
        fused = self.block(*(self._tokens(gated, prompts) for gated, prompts in pairs))
        return [(x[:, :, 1:], x[:, :, 0]) for x in fused]

    def _tokens(self, gated: Tensor, prompts: Tensor) -> Tensor:
        """``[p ; alpha * (p * g_p) + v * g_v]``, [E, N, 1+T, D]."""
        pushed = self.alpha * (prompts * self.gate_prompt(prompts))
        return torch.cat([prompts.unsqueeze(2), gated + pushed.unsqueeze(2)], dim=2)
