"""What CLIP-SPM can know of a video before it meets an episode, when nothing about it changes any more.

In scoring, a video's frames and the weights stand still. So a support's output of SPM, which depends on its
frames and its own class text, and what the projections make of it, are computed once for each video, not once
for each episode that it is in. A query's prompt depends on the episode: of a query, what is known are its
gated frames and their projections.

Shapes: N videos, T frames, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from clipspm.train_heads.heads.clipspm import pieces
from clipspm.train_heads.heads.clipspm.pieces import Projected

if TYPE_CHECKING:
    from clipspm.train_heads.heads.clipspm.head import CLIPSPM

#: videos that are gone through at a time
_CHUNK = 64


@dataclass(frozen=True)
class Recalled:
    """``frames`` [..., T, D] and what the projections of the block that reads them make of them."""

    frames: Tensor
    projected: Projected

    def __getitem__(self, rows: Tensor) -> "Recalled":
        """Videos ``rows`` [E, S] of N."""
        return self.each(lambda x: x[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> "Recalled":
        """The same with every tensor changed."""
        return Recalled(change(self.frames), Projected(*map(change, self.projected)))


def bytes_per_video(head: "CLIPSPM", frames: int) -> int:
    """What :func:`recall` keeps of one video, in float32."""
    block = head.padm.block
    return 2 * frames * 4 * (head.dim + block.heads * (2 * block.head_width + head.dim))


def recall(head: "CLIPSPM", videos: Tensor, text: Tensor) -> tuple[Recalled, Recalled]:
    """``videos`` [N, T, D] as supports, each with the ``text`` [N, D] of its class, and as queries."""
    wholes: list[Recalled] = []
    for start in range(0, len(videos), _CHUNK):
        rows = slice(start, start + _CHUNK)
        gated = head.fusion.gate_frames(videos[rows])
        ((modulated, _),) = head.fusion((gated.unsqueeze(0), text[rows].unsqueeze(0)))
        modulated = modulated.squeeze(0)
        parts = (
            Recalled(modulated, pieces.project(head.padm.block, modulated)),
            Recalled(gated, pieces.project(head.fusion.block, gated)),
        )
        if not wholes:
            wholes = [part.each(lambda x: x.new_empty(len(videos), *x.shape[1:])) for part in parts]
        for whole, part in zip(wholes, parts, strict=True):
            whole.frames[rows] = part.frames
            for store, x in zip(whole.projected, part.projected, strict=True):
                store[rows] = x
    support, query = wholes
    return support, query
