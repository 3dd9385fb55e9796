"""CLIP-SPM (arXiv 2512.19036) on cached frame features.

Shapes: E episodes, S support videos, Q query videos, N = S+Q (supports first), C classes, T frames, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import Head, HeadOutput, Scorer, matching_loss
from clipspm.train_heads.heads.clipspm.config import CLIPSPMConfig, make_config
from clipspm.train_heads.heads.clipspm.fusion import Fused, SemanticFusion
from clipspm.train_heads.heads.clipspm.hsmr import MotionFeatures, MovingFrames, motion_consistency
from clipspm.train_heads.heads.clipspm.padm import PADM, Refined, distances
from clipspm.train_heads.heads.clipspm.pieces import Projected
from clipspm.train_heads.heads.clipspm.recall import recall
from clipspm.train_heads.heads.clipspm.reference import (
    load_reference,
    reference_dim,
    split_reference,
    to_reference,
)
from clipspm.train_heads.heads.clipspm.spm import (
    Branches,
    PromptGenerator,
    fusion_consistency,
    prompts_for,
    text_consistency,
)
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.evidence import Evidence
from clipspm.train_heads.heads.parts.attention import Block, sinusoidal_positions
from clipspm.train_heads.heads.parts.matching import matcher

#: lambda of OTAM's soft minimum
SMOOTHING = 0.5
#: weight of w_motion * L_motion + L_text + L_consist in the loss
LOSS_WEIGHT = 0.001


@dataclass(frozen=True)
class Modulated:
    """Intermediate results of scoring that losses reuse; None where a switch leaves them out."""

    support: Tensor  #: the frames that are matched, SPM's if it is on: [E, S, T, D]
    query: Tensor  #: [E, Q, T, D]
    gated: Tensor | None  #: gated frames that SPM fused prompts into, [E, N, T, D]
    prompt: Tensor | None  #: generated prompts, [E, N, D]
    fused: Fused | None  #: SPM's output: supports by their class text, queries by their prompt
    motion: Fused | None  #: HSMR's output
    refined: Refined | None  #: PADM's output


class CLIPSPM(Head):
    """HSMR, SPM and PADM over frame features; every switch is in ``config``.

    Evidence: ``motion`` (-D0, where it has a weight), ``prototype`` (-D1), ``refined`` (-D2) and ``anchor``
    (-D3). Losses: ``motion`` with HSMR; ``text`` and ``consistency`` with SPM and ``config.consistency``.
    """

    unused = ("scale",)  # of the authors' checkpoints

    def __init__(
        self, dim: int, config: CLIPSPMConfig | None = None, *, layer_dims: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(dim=dim, layer_dims=layer_dims)
        self.config = c = config or CLIPSPMConfig()
        self.weights = {
            "motion": c.motion_weight,
            "prototype": c.d1_weight,
            "refined": c.d2_weight,
            "anchor": c.d3_weight,
        }
        self.scale = nn.Parameter(torch.ones(1))
        if c.learn_logit_scale:
            self.log_logit_scale = nn.Parameter(torch.tensor(math.log(c.logit_scale)))
        if c.hsmr:
            self.min_frames = 2
            self.motion = MotionFeatures(dim)
            self.moving = MovingFrames(c.motion_taps)
            self.w_motion = nn.Parameter(torch.tensor(1.0))
            if c.shallow_layer == FINAL:
                raise ValueError("shallow_layer: found 'final'; needed another cached layer")
            if c.shallow_layer is not None:
                self.layers = (FINAL, c.shallow_layer)
                self.lift = nn.Linear(self.width_of(c.shallow_layer, "shallow_layer"), dim)
        if c.hsmr or c.spm:
            self.fusion = SemanticFusion(
                dim, self._block(), rho_v=c.rho_v, rho_t=c.rho_t, slope=c.slope, alpha=c.alpha
            )
        self.needs_text = c.spm
        if c.spm:
            self.prompts = PromptGenerator(dim, width=c.ffn_width, dropout=c.ffn_dropout)
        if c.padm:
            self.padm = PADM(self._block())
        self.match = matcher(c.matcher, smoothing=SMOOTHING)

    def _block(self) -> Block:
        c = self.config
        return Block(
            self.dim,
            heads=c.heads,
            head_width=c.head_width,
            ffn_width=c.ffn_width,
            dropout=c.dropout,
            ffn_dropout=c.ffn_dropout,
            zero_init=c.zero_init,
        )

    @classmethod
    def from_reference(
        cls, state_dict: Mapping[str, Any], preset: str = "hmdb51", **overrides: Any
    ) -> "CLIPSPM":
        """Build the head of one of the authors' checkpoints; :mod:`.reference` lists the parameter names.

        ``state_dict`` may be the whole checkpoint (``{"model_state_dict": ...}``) and may hold ``backbone.*``
        entries, which are ignored. D is inferred; ``overrides`` are fields of :class:`CLIPSPMConfig`. Raises
        ValueError naming each parameter that is missing, unknown or of another shape than the preset's.
        """
        given, _ = split_reference(state_dict)
        head = cls(reference_dim(given), make_config(preset, **overrides))
        load_reference(head, given)
        return head

    def to_reference_state(self) -> dict[str, Tensor]:
        """Return the parameters under the authors' names; inverse of :meth:`from_reference`."""
        return to_reference({name: p.detach() for name, p in self.named_parameters()})

    @property
    def trainable(self) -> bool:
        c = self.config
        return c.hsmr or c.spm or c.padm or c.learn_logit_scale

    def scores(self, episode: Episode) -> Evidence:
        raw, s = episode.videos(), episode.support[FINAL].shape[1]
        frames, moving, motion = self._frames(episode, raw)
        gated = prompt = fused = None
        if self.config.spm:
            prompt = self.prompts(raw, episode.text)
            prompts = prompts_for(episode, prompt)
            gated = self.fusion.gate_frames(frames)
            if self.training and self.config.hsmr and motion is None:  # for the motion loss: both in one call
                raw_gated = gated if frames is raw else self.fusion.gate_frames(raw)
                motion, fused = self.fusion((raw_gated, self.shallow_motion(episode, raw)), (gated, prompts))
            else:
                (fused,) = self.fusion((gated, prompts))
        matched = frames if fused is None else fused.frames
        support, query = matched[:, :s], matched[:, s:]
        distance, refined = self.distances(episode, support, query, moving)
        found = {name: -value for name, value in distance.items()}
        return Evidence(found, kept=Modulated(support, query, gated, prompt, fused, motion, refined))

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        scale = self.log_logit_scale.exp() if self.config.learn_logit_scale else self.config.logit_scale
        return super().combine(episode, scores) * scale

    def losses(
        self, episode: Episode, scores: Evidence, query_labels: Tensor, base: BaseClasses | None
    ) -> dict[str, Tensor]:
        c, s, kept = self.config, episode.support[FINAL].shape[1], scores.kept
        found = {}
        if c.hsmr:
            motion = kept.motion or self.refined_motion(episode, episode.videos())
            found["motion"] = motion_consistency(self.motion(motion.frames), motion.token, s)
        if c.spm and c.consistency:
            known, unknown = episode.text_of(episode.support_labels), episode.text_of(query_labels)
            swapped = torch.cat([kept.prompt[:, :s], unknown], dim=1)
            (other,) = self.fusion((kept.gated, swapped))
            first, rest = slice(None, s), slice(s, None)
            supports = Branches(known, kept.prompt[:, first], kept.fused.part(first), other.part(first))
            queries = Branches(unknown, kept.prompt[:, rest], other.part(rest), kept.fused.part(rest))
            found["text"] = text_consistency(queries, supports, c.w_text)
            found["consistency"] = fusion_consistency(queries, supports, c.w_c)
        return found

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        """Return [E]: cross-entropy summed over queries / 16, plus 0.001 times the named terms."""
        terms = dict(output.losses)
        if "motion" in terms:
            terms["motion"] = self.w_motion * terms["motion"]
        return matching_loss(output.logits, query_labels) + LOSS_WEIGHT * sum(terms.values())

    def recall(self, videos: Mapping[str, Tensor], text: Tensor) -> Scorer | None:
        return recall(self, videos[FINAL], text)

    def _frames(self, episode: Episode, raw: Tensor) -> tuple[Tensor, Tensor | None, Fused | None]:
        """Return the frames [E, N, T, D] that SPM, PADM and the matching see.

        Also returns the moving frames if they are needed, and HSMR's output if the frames come from it.
        """
        c = self.config
        moving = self.moving(raw) if c.hsmr and (c.motion_weight or c.refines_what_moves) else None
        if moving is not None and c.refines_what_moves:
            motion = self.refined_motion(episode, self._positioned(moving))
            return motion.frames, moving, motion
        return self._positioned(raw) if c.spm or c.padm else raw, moving, None

    def refined_motion(self, episode: Episode, seen: Tensor) -> Fused:
        """Apply HSMR: fuse their shallow motion into the frames ``seen`` [E, N, T, D]."""
        (motion,) = self.fusion((self.fusion.gate_frames(seen), self.shallow_motion(episode, seen)))
        return motion

    def shallow_motion(self, episode: Episode, seen: Tensor) -> Tensor:
        """Return the shallow motion [E, N, D] of the frames ``seen``, or of the shallow layer."""
        layer = self.config.shallow_layer
        shallow: Tensor = self.motion(seen if layer is None else self.lift(episode.videos(layer)))
        return shallow

    def _positioned(self, frames: Tensor) -> Tensor:
        if not self.config.position:
            return frames
        return frames + 0.1 * sinusoidal_positions(frames.shape[2], self.dim, frames)

    def distances(
        self,
        episode: Episode,
        support: Tensor,
        query: Tensor,
        moving: Tensor | None = None,
        known: Projected | None = None,
    ) -> tuple[dict[str, Tensor], Refined | None]:
        """Return distances by name, each [E, Q, C], and PADM's output.

        ``support`` [E, S, T, D], ``query`` [E, Q, T, D]; ``moving`` [E, N, T, D]; ``known``: the supports'
        projections, if they are computed already.
        """
        found = {}
        if moving is not None and self.config.motion_weight:
            s = support.shape[1]
            found["motion"] = self.match(episode.class_mean(moving[:, :s]), moving[:, s:])
        found["prototype"] = self.match(episode.class_mean(support), query)
        if not self.config.padm:
            return found, None
        refined = self.padm(episode, support, query, known)
        found["refined"], found["anchor"] = distances(episode, refined, self.match)
        return found, refined
