"""Fast scoring with CLIP-SPM: compute once per video what does not depend on the episode.

When scoring, a video's frames and the weights do not change. So a support's SPM output, which depends on its
frames and its own class text, and the projections of that output are computed once per video, not once for
each episode that it is in. A query's prompt depends on the episode, so only its gated frames and their
projections are computed once. The slow path is :meth:`CLIPSPM.scores`.

Shapes: N videos, T frames, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.clipspm import pieces
from clipspm.train_heads.heads.clipspm.config import CLIPSPMConfig
from clipspm.train_heads.heads.clipspm.fusion import SemanticFusion
from clipspm.train_heads.heads.clipspm.padm import PADM
from clipspm.train_heads.heads.clipspm.pieces import Projected
from clipspm.train_heads.heads.clipspm.spm import PromptGenerator
from clipspm.train_heads.heads.episode import Episode

#: videos processed at a time
_CHUNK = 64


class Modules(Protocol):
    """What the fast path uses of :class:`CLIPSPM`."""

    config: CLIPSPMConfig
    training: bool
    fusion: SemanticFusion
    prompts: PromptGenerator
    padm: PADM

    def distances(
        self, episode: Episode, support: Tensor, query: Tensor, *, known: Projected | None = None
    ) -> tuple[Mapping[str, Tensor], object]: ...

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor: ...


def recall(head: Modules, videos: Tensor, text: Tensor) -> "Recalled | None":
    """Implement :meth:`Head.recall`; None if the head uses more than SPM and PADM, or would gain nothing."""
    c = head.config
    if head.training or not (c.spm and c.padm) or c.refines_what_moves or c.position:
        return None
    if c.hsmr and c.motion_weight:
        return None
    kind = videos.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != torch.bfloat16:
        return None  # scores of pieces, before the norm divides them, could leave the range of fp16
    with torch.autocast(kind, enabled=False):  # once per video: exact whatever the precision
        if not pieces.worth_it(head.padm.block, videos):
            return None

        def as_support(rows: slice) -> "Videos":
            gated = head.fusion.gate_frames(videos[rows])
            ((modulated, _),) = head.fusion((gated.unsqueeze(0), text[rows].unsqueeze(0)))
            frames = modulated.squeeze(0)
            return Videos(frames, pieces.project(head.padm.block, frames))

        def as_query(rows: slice) -> "Videos":
            gated = head.fusion.gate_frames(videos[rows])
            return Videos(gated, pieces.project(head.fusion.block, gated))

        count = len(videos)
        return Recalled(head, _compute_in_chunks(as_support, count), _compute_in_chunks(as_query, count))


@dataclass(frozen=True)
class Videos:
    """``frames`` [..., T, D] and their projections by the block that reads them."""

    frames: Tensor
    projected: Projected

    def __getitem__(self, rows: Tensor) -> "Videos":
        """Return the videos ``rows`` [E, S] of N."""
        return Videos(self.frames[rows], Projected(*(x[rows] for x in self.projected)))


@dataclass(frozen=True)
class Recalled:
    """Scores episodes of known videos [N], which are ``supports`` here and ``queries`` there."""

    head: Modules
    supports: Videos
    queries: Videos

    layers = (FINAL,)
    wide = True

    def __call__(self, episode: Episode, support: Tensor, query: Tensor) -> Tensor:
        """Return logits [E, Q, C] of episodes made of the rows ``support`` [E, S] and ``query`` [E, Q]."""
        head, known, asked = self.head, self.supports[support], self.queries[query]
        prompts = head.prompts(episode.query[FINAL], episode.text)
        frames = head.fusion.fuse_projected(asked.frames, asked.projected, prompts)
        distances, _ = head.distances(episode, known.frames, frames, known=known.projected)
        return head.combine(episode, {name: -value for name, value in distances.items()})


def _compute_in_chunks(make: Callable[[slice], Videos], count: int) -> Videos:
    """Call ``make`` for chunks of ``count`` videos; collect the results in preallocated tensors."""
    whole: Videos | None = None
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = make(rows)
        if whole is None:
            frames, *projected = (x.new_empty(count, *x.shape[1:]) for x in (part.frames, *part.projected))
            whole = Videos(frames, Projected(*projected))
        for store, x in zip((whole.frames, *whole.projected), (part.frames, *part.projected), strict=True):
            store[rows] = x
    assert whole is not None
    return whole
