"""Virtual training classes, mixed from the motion of two real ones.

Shapes: E episodes, C ways, K shots, Q queries per class, T frames, D width.
"""

from dataclasses import replace

import torch
from torch import Tensor

from clipspm.train_heads.evaluation.predict import Batch


def mix_motion(batch: Batch, strength: float, generator: torch.Generator) -> Batch:
    """Add to every video of a class a share of the motion of a video of another class of its episode.

    Motion is each frame minus its clip's mean frame, so mean frames do not change. The share is one number
    per episode and class, uniform in [-``strength``, ``strength``], the same for supports and queries. The
    other class is the one ``r`` positions further on, ``r`` drawn per episode. This is mixup (arXiv
    1710.09412) of motions, but labels stay hard, because each mixture is a class. Supports and queries must
    be sorted by class, equally many each, as drawn. ``generator`` must be on the CPU, so that the draw does
    not depend on the device.
    """
    episode = batch.episode
    episodes, ways = episode.text.shape[:2]
    steps = torch.randint(1, ways, (episodes, 1), generator=generator)
    partners = (torch.arange(ways) + steps) % ways
    share = (torch.rand(episodes, ways, generator=generator) * 2 - 1) * strength
    partners, share = partners.to(episode.text.device), share.to(episode.text)

    def mix(videos: Tensor) -> Tensor:
        return _mixed(videos, partners, share)

    return replace(batch, episode=episode.mapped(mix, mix))


def _mixed(videos: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """Add the motion of the ``partners`` [E, C], times ``share`` [E, C], to ``videos`` [E, C*K, T, D]."""
    ways = partners.shape[1]
    by_class = videos.unflatten(1, (ways, -1))
    motion = by_class - by_class.mean(dim=-2, keepdim=True)
    rows = torch.arange(len(videos), device=videos.device).unsqueeze(1)
    return (by_class + share[..., None, None, None] * motion[rows, partners]).flatten(1, 2)
