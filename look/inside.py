"""Where texts, prototypes and queries lie before and after CLIP-SPM's modules.

Shapes: E episodes, S supports, Q queries, C classes (ways), T frames, D width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.clipspm.head import CLIPSPM, Modulated
from clipspm.train_heads.heads.pool.head import EvidencePool

if TYPE_CHECKING:
    from clipspm.look.subject import Reading

BEFORE, SPM, PADM = "as cached", "after SPM", "after PADM"


@dataclass(frozen=True)
class Stage:
    """``text`` [E, C, D]; ``prototypes`` [E, Q, C, T, D], for each query; ``queries`` [E, Q, T, D]."""

    text: Tensor
    prototypes: Tensor
    queries: Tensor


def modules_of(head: Head) -> CLIPSPM | None:
    """Return the part of ``head`` that has HSMR, SPM and PADM, or None."""
    if isinstance(head, EvidencePool):
        return head.learned
    return head if isinstance(head, CLIPSPM) else None


def stages(reading: "Reading") -> dict[str, Stage]:
    """Return what is compared, by stage: as cached, and after SPM and PADM where the head has them.

    A text after SPM is the token that semantic fusion makes of it, mean over the class's supports; PADM
    changes no text.
    """
    episode = reading.episode
    queries = episode.query[FINAL].shape[1]

    def for_each_query(prototypes: Tensor) -> Tensor:
        return prototypes.unsqueeze(1).expand(-1, queries, -1, -1, -1)

    frames = for_each_query(episode.class_mean(episode.support[FINAL]))
    found = {BEFORE: Stage(episode.text, frames, episode.query[FINAL])}
    kept = _modulated(reading)
    if kept is None:
        return found
    text = episode.text
    if kept.fused is not None:
        supports = episode.support_labels.shape[1]
        tokens = kept.fused.token[:, :supports]
        text = (episode.one_hot.mT.to(tokens) @ tokens) / episode.shots.unsqueeze(-1)
        found[SPM] = Stage(text, for_each_query(episode.class_mean(kept.support)), kept.query)
    if kept.refined is not None:
        refined = kept.refined.support
        if refined.dim() == 5:  # of each query its own
            flat = refined.transpose(1, 2).flatten(2, 3)  # [E, S, Q*T, D]
            means = episode.class_mean(flat)  # [E, C, Q*T, D]
            prototypes = means.view(*means.shape[:2], queries, -1, means.shape[-1]).transpose(1, 2)
        else:
            prototypes = for_each_query(episode.class_mean(refined))
        found[PADM] = Stage(text, prototypes, kept.refined.query)
    return found


def _modulated(reading: "Reading") -> Modulated | None:
    """Return what CLIP-SPM computed, also where the evidence it learned does not count."""
    modules = modules_of(reading.head)
    if modules is None:
        return None
    kept = reading.evidence.kept
    if not isinstance(kept, Modulated):
        learned = getattr(kept, "learned", None) or modules.scores(reading.episode)
        kept = learned.kept
    return kept if isinstance(kept, Modulated) else None
