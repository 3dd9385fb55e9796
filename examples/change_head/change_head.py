"""A head that another package brings: what a clip looks like, and how it changes from first frame to last."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipspm.train_heads import Episode, Head


class ChangeHead(Head):
    """Cosines of a query and each class's mean support: of mean frames, and of last minus first frames.

    The change passes a learned linear map first, the identity at the start. ``share``, what the change counts
    in the logits, is chosen on validation classes. ``scale``: factor of the cosines.
    """

    min_frames = 2
    tunable = {"share": (0.0, 0.25, 0.5, 0.75, 1.0)}
    share: Tensor

    def __init__(self, *, dim: int, scale: float = 10.0) -> None:
        super().__init__(dim=dim)
        self.scale = scale
        self.map = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.map.weight)
        self.register_buffer("share", torch.tensor(0.5))

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        support, query = episode.support["final"], episode.query["final"]  # [E, S, T, D], [E, Q, T, D]
        change = [self.map(x[:, :, -1:] - x[:, :, :1]) for x in (support, query)]
        look = support.mean(2, keepdim=True), query.mean(2, keepdim=True)
        return {"look": self.cosines(episode, *look), "change": self.cosines(episode, *change)}

    def cosines(self, episode: Episode, support: Tensor, query: Tensor) -> Tensor:
        """[E, S, 1, D] and [E, Q, 1, D] -> [E, Q, C]."""
        classes = F.normalize(episode.class_mean(support).squeeze(2), dim=-1)
        return self.scale * F.normalize(query.squeeze(2), dim=-1) @ classes.mT

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return (1 - self.share) * scores["look"] + self.share * scores["change"]
