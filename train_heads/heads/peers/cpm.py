"""Compound prototype matching (arXiv 2207.05515): global prototypes by index, focused ones by assignment."""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import Head, HeadOutput, matching_loss
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.evidence import Evidence
from clipspm.train_heads.heads.parts.attention import Block, FeedForward, sinusoidal_positions
from clipspm.train_heads.heads.parts.otam import full

_MOST_FOCUSED = 12


class CPM(Head):
    """A small transformer reads each video into ``m_g`` global and ``m_f`` focused prototypes.

    Similarity of two videos: mean cosine of the global prototypes with the same index and of the focused ones
    under their best bipartite assignment, averaged; of a query and a class: the mean over its supports, times
    the learnable ``scale``. Loss ``focus`` [E]: how far from its own share of the clip each focused
    token attends (attention-weighted squared time), times ``focus_weight``.

    Source: arXiv 2207.05515, section 3. The paper's encoder also relates detected objects across frames and
    is trained on whole feature maps; cached frame embeddings have neither objects nor space, so tokens read
    T vectors. Its numbers of prototypes could not be checked; 8 and 8 are ours.
    """

    needs_text = False

    def __init__(
        self,
        *,
        dim: int,
        frames: int,
        m_g: int = 8,
        m_f: int = 8,
        heads: int = 8,
        ffn_width: int = 1024,
        dropout: float = 0.1,
        scale: float = 10.0,
        focus_weight: float = 0.1,
    ) -> None:
        super().__init__(dim=dim)
        if m_g < 1 or not 1 <= m_f <= _MOST_FOCUSED:
            raise ValueError(f"m_g, m_f: found {m_g}, {m_f}; needed m_g >= 1 and m_f in 1..{_MOST_FOCUSED}")
        self.m_g, self.m_f, self.heads, self.focus_weight = m_g, m_f, heads, focus_weight
        self.encoder = Block(dim, heads=heads, ffn_width=ffn_width, dropout=dropout, ffn_dropout=dropout)
        self.tokens = nn.Parameter(torch.randn(m_g + m_f, dim) * dim**-0.5)
        self.norm_tokens, self.norm_frames = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, dim)
        self.to_key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.ffn = FeedForward(dim, ffn_width, dropout)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def read(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Return prototypes [E, N, m_g+m_f, D] of ``videos`` [E, N, T, D], and tokens' attention [..., T]."""
        (encoded,) = self.encoder(videos + 0.1 * sinusoidal_positions(videos.shape[2], self.dim, videos))
        q = self.to_query(self.norm_tokens(self.tokens)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        k, v = self.to_key_value(self.norm_frames(encoded)).unflatten(-1, (2, self.heads, -1)).movedim(-3, 0)
        k, v = k.transpose(2, 3), v.transpose(2, 3)  # [E, N, h, T, d]
        share = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)  # [E, N, h, m, T]
        x = self.tokens + self.out((share @ v).transpose(2, 3).flatten(-2))
        return x + self.ffn(x), share.mean(2)

    def scores(self, episode: Episode) -> Evidence:
        s = episode.support[FINAL].shape[1]
        prototypes, attention = self.read(episode.videos())
        with torch.autocast(prototypes.device.type, enabled=False):
            unit = F.normalize(full(prototypes), dim=-1)
            support, query = unit[:, :s], unit[:, s:]
            by_index = query[:, :, : self.m_g].flatten(2) @ support[:, :, : self.m_g].flatten(2).mT / self.m_g
            focused = query[:, :, self.m_g :].flatten(1, 2) @ support[:, :, self.m_g :].flatten(1, 2).mT
            cells = focused.unflatten(2, (s, self.m_f)).unflatten(1, (-1, self.m_f)).transpose(2, 3)
            member = episode.one_hot.to(by_index.dtype) / episode.shots.to(by_index.dtype).unsqueeze(1)
            return Evidence(
                {"global": by_index @ member, "focused": best_assignment(cells) / self.m_f @ member},
                kept=full(attention[:, :, self.m_g :]),
            )

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return self.scale * (scores["global"] + scores["focused"]) / 2

    def losses(
        self, episode: Episode, scores: Evidence, query_labels: Tensor, base: BaseClasses | None
    ) -> dict[str, Tensor]:
        return {"focus": self._focus(scores.kept)}

    def _focus(self, attention: Tensor) -> Tensor:
        """Return the mean squared distance of ``attention`` [E, N, m_f, T] from each token's time: [E]."""

        def middles(n: int) -> Tensor:
            return (torch.arange(n, device=attention.device, dtype=attention.dtype) + 0.5) / n

        apart = (middles(attention.shape[2])[:, None] - middles(attention.shape[3])).square()
        return (attention * apart).sum(-1).mean((1, 2))

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        """Return [E]: cross-entropy summed over queries / 16, plus ``focus_weight * focus``."""
        loss = matching_loss(output.logits, query_labels)
        return loss + self.focus_weight * output.losses["focus"] if "focus" in output.losses else loss


def best_assignment(similarity: Tensor) -> Tensor:
    """Return the largest sum of one entry per row and column of each ``similarity`` [..., m, m]: [...].

    Exact, for all matrices at once: dynamic programming over the sets of columns used by the first rows.
    Gradients go to the chosen entries.
    """
    m = similarity.shape[-1]
    best = similarity.new_zeros(*similarity.shape[:-2], 1)
    for row, (columns, before) in enumerate(_assignment_steps(m)):
        entry = similarity[..., row, :][..., columns.to(similarity.device)]
        best = (entry + best[..., before.to(similarity.device)]).max(-1).values
    return best.squeeze(-1)


@cache
def _assignment_steps(m: int) -> list[tuple[Tensor, Tensor]]:
    """For row r and each set of r+1 columns, return the columns, and the index of the set without each."""
    steps = []
    position = {0: 0}
    for size in range(1, m + 1):
        sets = [k for k in range(2**m) if k.bit_count() == size]
        columns = [[c for c in range(m) if k >> c & 1] for k in sets]
        before = [[position[k & ~(1 << c)] for c in cs] for k, cs in zip(sets, columns, strict=True)]
        steps.append((torch.tensor(columns), torch.tensor(before)))
        position = {k: i for i, k in enumerate(sets)}
    return steps
