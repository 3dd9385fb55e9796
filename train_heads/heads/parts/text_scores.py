"""Score videos against class texts, and fuse that with a matching score."""

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspm.train_heads.heads.parts.otam import full

#: candidates of the fusion weight b; denser at the ends, where one score is much sharper than the other
FUSION_CANDIDATES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosine of all rows of ``x`` [..., N, D] and ``y`` [..., M, D] (or [M, D]): [..., N, M]."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(full(x), dim=-1) @ F.normalize(full(y), dim=-1).transpose(-1, -2)


def text_cosine(frames: Tensor, text: Tensor) -> Tensor:
    """Return the cosine of mean frames [E, N, T, D] with ``text`` [E, C, D] or [B, D]: [E, N, C]."""
    return cosine(full(frames).mean(dim=2), text)


def fuse(matching: Tensor, text: Tensor, b: Tensor | float) -> Tensor:
    """Return ``log(p_text^b * p_match^(1-b))`` of two logits [..., C] (arXiv 2303.02982, section 3.4)."""
    return b * text.log_softmax(-1) + (1 - b) * matching.log_softmax(-1)
