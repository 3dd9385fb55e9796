"""Semantic Prototype Modulation (arXiv 2512.19036): prompts where the class is unknown, and consistency."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipspm.train_heads.heads.clipspm.fusion import Fused
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.parts.attention import FeedForward


class PromptGenerator(nn.Module):
    """``prompt(v) = FFN(tbar * s(v))``: a prompt for a video whose class is unknown.

    ``tbar`` is the mean text of the episode's classes, ``s(v)`` the mean of ``v`` over frames and channels.
    """

    def __init__(self, dim: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.ffn = FeedForward(dim, width, dropout)

    def forward(self, v: Tensor, text: Tensor) -> Tensor:
        """Generate prompts [E, N, D] for ``v`` [E, N, T, D], given ``text`` [E, C, D]."""
        prompts: Tensor = self.ffn(text.mean(dim=1, keepdim=True) * v.mean(dim=(2, 3)).unsqueeze(-1))
        return prompts


def prompts_for(episode: Episode, generated: Tensor) -> Tensor:
    """Give each video its prompt [E, N, D]: a support the text of its class, a query its ``generated`` one.

    ``generated`` [E, N, D], supports first.
    """
    known = episode.text_of(episode.support_labels)
    return torch.cat([known, generated[:, known.shape[1] :]], dim=1)


@dataclass(frozen=True)
class Branches:
    """SF outputs for videos [E, N, ...], from the text of their class and from their generated prompt."""

    text: Tensor  #: true class text, [E, N, D]
    prompt: Tensor  #: generated prompt before SF, [E, N, D]
    real: Fused  #: from the true text
    fake: Fused  #: from the generated prompt


def text_consistency(query: Branches, support: Branches, weight: float) -> Tensor:
    """Return ``L_text`` [E]: squared distances of generated prompts to true texts, before and after SF.

    Queries have weight ``weight``, supports 0.5 - ``weight``.
    """

    def gap(b: Branches) -> Tensor:
        before = (b.text - b.prompt).square().sum(-1)
        after = (b.real.token - b.fake.token).square().sum(-1)
        return (before + after).mean(1)

    return gap(query) * weight + gap(support) * (0.5 - weight)


def fusion_consistency(query: Branches, support: Branches, weight: float) -> Tensor:
    """Return ``L_consist`` [E]: squared distances of SF outputs from generated prompts and from true texts.

    Queries have weight ``weight``, supports 1 - ``weight``.
    """

    def gap(b: Branches) -> Tensor:
        frames = (b.real.frames - b.fake.frames).square().sum((-1, -2))
        return (frames + (b.real.token - b.fake.token).square().sum(-1)).mean(1)

    return gap(query) * weight + gap(support) * (1 - weight)
