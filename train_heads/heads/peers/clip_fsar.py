"""CLIP-FSAR (arXiv 2303.02982): class texts in a temporal transformer over the supports, then OTAM."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import (
    EPISODES_PER_STEP,
    Head,
    HeadOutput,
    cross_entropy,
    matching_loss,
)
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.evidence import Evidence
from clipspm.train_heads.heads.parts.attention import Block
from clipspm.train_heads.heads.parts.matching import otam
from clipspm.train_heads.heads.parts.otam import frame_distance
from clipspm.train_heads.heads.parts.text_scores import FUSION_CANDIDATES, fuse


class CLIPFSAR(Head):
    """Supports attend over their T frames and their class text, queries over their T frames; then -OTAM.

    Source: arXiv 2303.02982, sections 3.3 and 3.4. Auxiliary loss ``class_text``, given ``base``:
    cross-entropy of ``scale * cos(mean frame, every base-class text)`` over all videos, times
    ``class_text_weight``. In the paper it trains the visual encoder; on frozen features it can only fit the
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
        self.block = Block(dim, heads=heads, ffn_width=ffn_width, dropout=dropout, ffn_dropout=ffn_dropout)
        self.scale = nn.Parameter(torch.full((1,), float(text_scale)))
        self.class_text_weight = class_text_weight
        self.text_fusion = text_fusion
        if text_fusion:
            self.register_buffer("fusion_b", torch.tensor(float(fusion_b)))
            self.tunable = {"fusion_b": FUSION_CANDIDATES}

    def class_logits(self, frames: Tensor, text: Tensor) -> Tensor:
        """Return ``scale * cos`` (with OTAM's 0.01) of mean frames and class texts, [E, N, C] or [E, N, B].

        ``frames`` [E, N, T, D], ``text`` [E, C, D] or [B, D].
        """
        return self.scale * (1 - frame_distance(frames.mean(2), text))

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        texts = episode.text_of(episode.support_labels).unsqueeze(2)
        queries = episode.query[FINAL]
        support, query = self.block(torch.cat([episode.support[FINAL], texts], dim=2), queries)
        found = {"alignment": -otam(episode.class_mean(support[:, :, :-1]), query)}
        if self.text_fusion and not self.training:
            found["text"] = self.class_logits(queries, episode.text)
        return found

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        if "text" not in scores:
            return scores["alignment"]
        frames = episode.query[FINAL].shape[2]
        return fuse((frames + scores["alignment"]) / frames, scores["text"], self.fusion_b)

    def losses(
        self, episode: Episode, scores: Evidence, query_labels: Tensor, base: BaseClasses | None
    ) -> dict[str, Tensor]:
        if base is None or not self.class_text_weight:
            return {}
        labels = torch.cat([base.support, base.query], dim=1)
        return {"class_text": cross_entropy(self.class_logits(episode.videos(), base.text), labels).mean(1)}

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        """Return [E]: the matching's cross-entropy / 16, plus ``class_text`` scaled alike (times Q / 16)."""
        loss = matching_loss(output.logits, query_labels)
        if "class_text" in output.losses:
            share = query_labels.shape[-1] / EPISODES_PER_STEP
            loss = loss + self.class_text_weight * share * output.losses["class_text"]
        return loss
