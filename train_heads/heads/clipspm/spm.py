"""Semantic Prototype Modulation (arXiv 2512.19036): prompts where the class is unknown, and consistency."""

from dataclasses import dataclass

from torch import Tensor, nn

from clipspm.train_heads.heads.clipspm.config import Prompt
from clipspm.train_heads.heads.parts.attention import FeedForward


class PromptGenerator(nn.Module):
    """``prompt(v) = FFN(tbar * s(v))`` with ``tbar`` the mean text of the episode's classes.

    ``s(v)`` is the mean of ``v`` over frames and channels ("scalar", the released code) or over frames only
    ("mean-frame", a variant).
    """

    def __init__(self, dim: int, *, width: int, dropout: float, prompt: Prompt) -> None:
        super().__init__()
        self.ffn = FeedForward(dim, width, dropout)
        self.prompt = prompt

    def forward(self, v: Tensor, text: Tensor) -> Tensor:
        """``v`` [E, N, T, D], ``text`` [E, C, D] -> [E, N, D]."""
        summary = v.mean(dim=2) if self.prompt == "mean-frame" else v.mean(dim=(2, 3)).unsqueeze(-1)
        prompts: Tensor = self.ffn(text.mean(dim=1, keepdim=True) * summary)
        return prompts


@dataclass(frozen=True)
class Branches:
    """What SF made of videos [E, N, ...] given the text of their class, and given their generated prompt."""

    text: Tensor  #: true class text, [E, N, D]
    prompt: Tensor  #: generated prompt before SF, [E, N, D]
    real: tuple[Tensor, Tensor]  #: frames [E, N, T, D] and token [E, N, D] from the true text
    fake: tuple[Tensor, Tensor]  #: the same from the generated prompt


def text_consistency(query: Branches, support: Branches, weight: float) -> Tensor:
    """``L_text`` [E]: prompts and tokens apart; queries count ``weight``, supports 0.5 - ``weight``."""

    def gap(b: Branches) -> Tensor:
        before = (b.text - b.prompt).square().sum(-1)
        after = (b.real[1] - b.fake[1]).square().sum(-1)
        return (before + after).mean(1)

    return gap(query) * weight + gap(support) * (0.5 - weight)


def fusion_consistency(query: Branches, support: Branches, weight: float) -> Tensor:
    """``L_consist`` [E]: whole outputs apart; queries count ``weight``, supports 1 - ``weight``."""

    def gap(b: Branches) -> Tensor:
        frames = (b.real[0] - b.fake[0]).square().sum((-1, -2))
        return (frames + (b.real[1] - b.fake[1]).square().sum(-1)).mean(1)

    return gap(query) * weight + gap(support) * (1 - weight)
