"""Semantic Prompt (arXiv 2303.14123), an image method, adapted from patches to frames."""

import torch
from torch import Tensor, nn

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.parts.attention import Block
from clipspm.train_heads.heads.parts.text_scores import cosine


class SemanticPrompt(Head):
    """The class text prompts a support's frames as a token (spatial) and as a vector added to them (channel).

    Source: arXiv 2303.14123, section 4.2: the projected text is prepended to the tokens of a transformer
    layer; and an MLP of the projected text and the mean token gives what is added to every token. In the
    paper the tokens are patches of one image inside a Visformer that is trained; here they are the frozen
    frame embeddings of a video, so one Block after the encoder takes that place. Queries go through it
    without a prompt. Prototypes are class means over supports and frames; logits are a cosine times the
    learnable ``scale``.
    """

    def __init__(
        self,
        *,
        dim: int,
        frames: int,
        heads: int = 8,
        ffn_width: int = 2048,
        dropout: float = 0.1,
        scale: float = 10.0,
    ) -> None:
        super().__init__(dim=dim)
        self.block = Block(dim, heads=heads, ffn_width=ffn_width, dropout=dropout, ffn_dropout=dropout)
        self.project_spatial = nn.Linear(dim, dim)
        self.project_channel = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.Sigmoid(), nn.Linear(dim, dim), nn.Sigmoid())
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def prompted(self, frames: Tensor, text: Tensor) -> Tensor:
        """Add ``text`` [E, N, D] to ``frames`` [E, N, T, D]: the block's input [E, N, 1+T, D]."""
        joint = torch.cat([self.project_channel(text), frames.mean(2)], dim=-1)
        pushed = frames + self.mlp(joint).unsqueeze(2)
        return torch.cat([self.project_spatial(text).unsqueeze(2), pushed], dim=2)

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        texts = episode.text_of(episode.support_labels)
        support, query = self.block(self.prompted(episode.support[FINAL], texts), episode.query[FINAL])
        prototypes = episode.class_mean(support[:, :, 1:]).mean(2)
        return {"prototype": self.scale * cosine(query.mean(2), prototypes)}
