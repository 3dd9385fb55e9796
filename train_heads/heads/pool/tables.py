"""Fast scoring with the pool: cosines between all videos are computed once, and every episode reads its own.

A table holds a number for each pair of videos and frame, [N, N, T]. What moves and drifts is the same in
every episode; what is seen has the mean frame of the episode's supports taken off, which follows from the
products of frames with frames and with mean frames. The slow path is :meth:`.head.EvidencePool.scores`.

Shapes: N videos, E episodes, S supports, Q queries, C classes, T frames, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.clipspm.config import CLIPSPMConfig
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.evidence import Evidence
from clipspm.train_heads.heads.parts.text_scores import cosine
from clipspm.train_heads.heads.pool.kinds import Cosines, drifting, moving

#: bytes of all tables, at most
MOST = 2e9


class Weigher(Protocol):
    """What scoring uses of the head."""

    names: tuple[str, ...]
    config: CLIPSPMConfig

    def weighed(
        self,
        episode: Episode,
        found: Mapping[str, Cosines],
        texts: tuple[Tensor, Tensor] | None,
        familiar: Tensor,
    ) -> Evidence: ...

    def familiar(self, supports: Tensor, one_hot: Tensor) -> Tensor: ...

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor: ...


class Seen(NamedTuple):
    """Products of frame t of a video with frame t of another, and with its mean frame, both [N, N, T]."""

    frames: Tensor
    means: Tensor

    @classmethod
    def of(cls, videos: Tensor) -> "Seen":
        """Compute the products of all ``videos`` [N, T, D]."""
        # of frames minus the mean of all: it changes no score, and keeps digits
        centred = videos - videos.mean((0, 1))
        return cls(_products(centred), _products(centred, centred.mean(1, keepdim=True).expand_as(centred)))

    def cosines(self, support: Tensor, query: Tensor) -> Cosines:
        """Return those of frames minus the mean frame of the supports; rows [E, S] and [E, Q]."""
        with_mean = _read(self.means, support, support).mean(3)  # of support frames with the mean, [E, T, S]
        square = with_mean.mean((1, 2), keepdim=True)
        query_with_mean = _read(self.means, query, support).mean(3)

        def length(rows: Tensor, along: Tensor) -> Tensor:
            own = self.frames.diagonal(dim1=0, dim2=1).T[rows].transpose(1, 2)
            return (own - 2 * along + square).clamp(min=1e-12).sqrt()

        s, q = length(support, with_mean), length(query, query_with_mean)

        def between(rows: Tensor, along: Tensor, lengths: Tensor) -> Tensor:
            found = _read(self.frames, rows, support) - along.unsqueeze(3) - with_mean.unsqueeze(2)
            return (found + square.unsqueeze(3)) / lengths.unsqueeze(3) / s.unsqueeze(2)

        return Cosines(between(support, with_mean, s), between(query, query_with_mean, q))


class Moved(NamedTuple):
    """Cosines of frame t of a video with frame t of another, [N, N, T]."""

    frames: Tensor

    def cosines(self, support: Tensor, query: Tensor) -> Cosines:
        """Return those of rows [E, S] and [E, Q]."""
        return Cosines(_read(self.frames, support, support), _read(self.frames, query, support))


@dataclass(frozen=True)
class Tables:
    """Scores episodes of known videos, without their features."""

    head: Weigher
    by_name: Mapping[str, Seen | Moved]
    means: Tensor  #: mean frames, [N, D], for the texts

    layers = ()  #: layers that an episode has to bring
    wide = False

    @classmethod
    def of(cls, head: Weigher, videos: Mapping[str, Tensor]) -> "Tables | None":
        """Compute what ``head`` reads of ``videos`` [N, T, D] by layer; None if that is too large."""
        count, frames, _ = videos[FINAL].shape
        tables = sum(2 if name.startswith("look/") else 1 for name in head.names)
        if 4.0 * count * count * frames * tables > MOST:
            return None
        found: dict[str, Seen | Moved] = {}
        with torch.autocast(videos[FINAL].device.type, enabled=False):
            for name in head.names:
                kind, layer = name.split("/", 1)
                if kind in ("look", "still"):
                    seen = videos[layer] if kind == "look" else videos[layer].mean(1, keepdim=True)
                    found[name] = Seen.of(seen)
                else:
                    moved = moving(videos[layer]) if kind == "move" else drifting(videos[layer])
                    found[name] = Moved(_products(F.normalize(moved, dim=-1)))
        return cls(head, found, videos[FINAL].mean(1))

    def __call__(self, episode: Episode, support: Tensor, query: Tensor) -> Tensor:
        """Return logits [E, Q, C] of episodes made of the rows ``support`` [E, S] and ``query`` [E, Q]."""
        found = {name: table.cosines(support, query) for name, table in self.by_name.items()}
        texts = None
        if self.head.config.text:
            texts = cosine(self.means[support], episode.text), cosine(self.means[query], episode.text)
        familiar = self.head.familiar(self.means[support], episode.one_hot)
        return self.head.combine(episode, self.head.weighed(episode, found, texts, familiar))


def _products(videos: Tensor, others: Tensor | None = None) -> Tensor:
    """Multiply frames of ``videos`` [N, T, D] and ``others`` at the same index, [N, N, T]."""
    others = videos if others is None else others
    out = videos.new_empty(len(videos), len(others), videos.shape[1])
    for t in range(videos.shape[1]):
        out[:, :, t] = videos[:, t] @ others[:, t].T
    return out


def _read(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return [E, T, R, C] of a table [N, N, T]: ``rows`` [E, R], ``columns`` [E, C]."""
    pairs = rows.unsqueeze(2) * table.shape[1] + columns.unsqueeze(1)
    found = table.flatten(0, 1).index_select(0, pairs.flatten())
    return found.view(*pairs.shape, -1).permute(0, 3, 1, 2)
