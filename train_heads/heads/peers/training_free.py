"""Heads without parameters; some have scalars to tune on validation classes.

Shapes: E episodes, S support videos, Q query videos, C ways, T frames, D feature width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.parts.matching import otam
from clipspm.train_heads.heads.parts.text_scores import cosine, text_cosine


class ZeroShot(Head):
    """``text_scale * cos(mean frame of the query, class text) + text_bias``; the supports are ignored.

    Source: CLIP (arXiv 2103.00020, section 3.1.2), frames averaged as in its video results. Scale and bias
    are what the encoder was trained with: 100 and none for CLIP; sigmoid models (SigLIP) have both.
    """

    def __init__(self, *, dim: int, text_scale: float = 100.0, text_bias: float = 0.0) -> None:
        super().__init__(dim=dim)
        self.text_scale, self.text_bias = text_scale, text_bias

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        return {"text": self.text_scale * text_cosine(episode.query[FINAL], episode.text) + self.text_bias}


class Prototype(Head):
    """Cosine of the query's mean frame and the mean frame of the class's supports; blind to order.

    Source: prototypical networks (arXiv 1703.05175, section 2) with a cosine; in the paper the embedding is
    trained episode by episode, here it is frozen.
    """

    needs_text = False

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        prototypes = episode.class_mean(episode.support[FINAL]).mean(2)
        return {"prototype": cosine(episode.query[FINAL].mean(2), prototypes)}


class FrameCosine(Head):
    """Mean over t of the cosine between the query's frame t and the class's mean frame t.

    A control: order counts, alignment does not. With ``centered``, each clip's mean frame is subtracted
    first, so that only what changes within the clip is compared.
    """

    needs_text = False

    def __init__(self, *, dim: int, frames: int, centered: bool = False) -> None:
        super().__init__(dim=dim)
        self.centered = centered

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        support, query = episode.support[FINAL], episode.query[FINAL]
        if self.centered:
            support, query = (x - x.mean(2, keepdim=True) for x in (support, query))
        prototypes = F.normalize(episode.class_mean(support), dim=-1)
        # a mean of cosines is one product of the frames laid end to end
        queries = F.normalize(query, dim=-1)
        with torch.autocast(query.device.type, enabled=False):
            return {"frames": queries.flatten(2) @ prototypes.flatten(2).mT / query.shape[2]}


class OTAM(Head):
    """``-OTAM(class mean of the supports per frame, query)``, bidirectional.

    Source: arXiv 1906.11415; in the paper the frame encoder is trained through the alignment, here it is
    frozen and nothing is left to train. ``smoothing`` is lambda of the soft minimum.
    """

    needs_text = False

    def __init__(self, *, dim: int, frames: int, smoothing: float = 0.5) -> None:
        super().__init__(dim=dim)
        self.smoothing = smoothing

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        prototypes = episode.class_mean(episode.support[FINAL])
        return {"alignment": -otam(prototypes, episode.query[FINAL], smoothing=self.smoothing)}


class TipAdapter(Head):
    """``alpha * sum over supports of exp(-beta * (1 - cos)) * one-hot``, plus the text of :class:`ZeroShot`.

    Source: Tip-Adapter, training-free (arXiv 2111.03930, section 3.2), a cache model over images for frozen
    CLIP; here a key is the mean frame of a support video. alpha and beta are buffers, chosen on validation
    classes instead of by the paper's search on the target data set.
    """

    alpha: Tensor
    beta: Tensor
    tunable = {  # noqa: RUF012
        "alpha": (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
        "beta": (1.0, 2.0, 3.5, 5.5, 8.0, 12.0, 20.0),
    }

    def __init__(
        self,
        *,
        dim: int,
        frames: int,
        alpha: float = 1.0,
        beta: float = 5.5,
        text_scale: float = 100.0,
        text_bias: float = 0.0,
    ) -> None:
        super().__init__(dim=dim)
        self.text_scale, self.text_bias = text_scale, text_bias
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def scores(self, episode: Episode) -> dict[str, Tensor]:
        affinity = cosine(episode.query[FINAL].mean(2), episode.support[FINAL].mean(2))
        near = (self.beta * (affinity - 1)).exp()
        with torch.autocast(near.device.type, enabled=False):
            supports = near @ episode.one_hot.to(near.dtype)
        text = self.text_scale * text_cosine(episode.query[FINAL], episode.text) + self.text_bias
        return {"supports": supports, "text": text}

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        return self.alpha * scores["supports"] + scores["text"]
