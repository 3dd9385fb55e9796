"""CLIP-FSAR (arXiv 2303.02982): class texts in a temporal transformer over the supports, then OTAM."""

import torch
from torch import Tensor, nn

from clipspm.train_heads.heads.base import EPISODES_PER_STEP, Head, HeadOutput, cross_entropy
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.parts.attention import Block
from clipspm.train_heads.heads.parts.matching import otam
from clipspm.train_heads.heads.parts.otam import frame_distance
from clipspm.train_heads.heads.parts.text_scores import FUSION_CANDIDATES, fuse


class CLIPFSAR(Head):
    """Supports attend over their T frames and their class text, queries over their T frames; then -OTAM.

    Source: arXiv 2303.02982, sections 3.3 and 3.4. Auxiliary loss ``class_text``, given ``base``:
    cross-entropy of ``scale * cos(mean frame, every base-class text)`` over all videos, times
    ``class_text_weight``. There it trains the visual encoder; on frozen features it can only fit the
    learnable ``scale``, which starts at ``text_scale``. ``text_fusion``: when scoring, ``p_text^b *
    p_match^(1-b)`` with ``p_match = softmax((T - distance) / T)`` and ``b`` the buffer ``fusion_b`` (0.9 in
    the paper's code).
    """

    fusion_b: Tensor

    def __init__(
        self,
        *,
        dim: int,
        frames: int,
        heads: int = 8,
        ffn_width: int = 2048,
        dropout: float = 0.2,
        ffn_dropout: float = 0.05,
        class_text_weight: float = 1.2,
        text_scale: float = 1.0,
        text_fusion: bool = False,
        fusion_b: float = 0.9,
    ) -> None:
        super().__init__(dim=dim)
        if dim % heads:
            raise ValueError(f"heads: found {heads}; needed a divisor of D = {dim}")
        self.block = Block(
            dim,
            heads=heads,
            head_width=dim // heads,
            ffn_width=ffn_width,
            dropout=dropout,
            ffn_dropout=ffn_dropout,
        )
        self.scale = nn.Parameter(torch.full((1,), float(text_scale)))
        self.class_text_weight = class_text_weight
        self.text_fusion = text_fusion
        if text_fusion:
            self.register_buffer("fusion_b", torch.tensor(float(fusion_b)))

    def tunable(self) -> dict[str, tuple[float, ...]]:
        return {"fusion_b": FUSION_CANDIDATES} if self.text_fusion else {}

    def class_logits(self, frames: Tensor, text: Tensor) -> Tensor:
        """``scale * cos`` (with OTAM's 0.01) of mean frames [E, N, T, D] and ``text`` [E, C, D] or [B, D]."""
        return self.scale * (1 - frame_distance(frames.mean(2), text))

    def score(self, episode: Episode) -> HeadOutput:
        texts = episode.text_of(episode.support_labels).unsqueeze(2)
        support, query = self.block(torch.cat([episode.support, texts], dim=2), episode.query)
        distance = otam(episode.class_mean(support[:, :, :-1]), query)
        logits = -distance
        if self.text_fusion and not self.training:
            frames = episode.query.shape[2]
            text = self.class_logits(episode.query, episode.text)
            logits = fuse((frames - distance) / frames, text, self.fusion_b)
        losses = {}
        if episode.base is not None and self.class_text_weight:
            labels = torch.cat([episode.base.support, episode.base.query], dim=1)
            against = self.class_logits(episode.videos, episode.base.text)
            losses["class_text"] = cross_entropy(against, labels).mean(1)
        return HeadOutput(logits, losses)

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        """[E]: the matching's cross-entropy / 16, plus ``class_text`` on the same scale (times Q / 16)."""
        loss = super().episode_loss(output, query_labels)
        if "class_text" in output.losses:
            share = query_labels.shape[-1] / EPISODES_PER_STEP
            loss = loss + self.class_text_weight * share * output.losses["class_text"]
        return loss
