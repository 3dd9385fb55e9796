"""CLIP-SPM (arXiv 2512.19036) on cached frame features.

Shapes: E episodes, S support videos, Q query videos, N = S+Q (supports first), C ways, T frames, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clipspm.train_heads.heads.base import (
    EPISODES_PER_STEP,
    Episode,
    Head,
    HeadOutput,
    cross_entropy,
)
from clipspm.train_heads.heads.clipspm import pieces
from clipspm.train_heads.heads.clipspm.config import CLIPSPMConfig, TextInput, make_config
from clipspm.train_heads.heads.clipspm.fusion import SemanticFusion
from clipspm.train_heads.heads.clipspm.hsmr import MotionFeatures, MovingFrames, motion_consistency
from clipspm.train_heads.heads.clipspm.padm import PADM, Refined, distances
from clipspm.train_heads.heads.clipspm.recall import Recalled, bytes_per_video, recall
from clipspm.train_heads.heads.clipspm.spm import (
    Branches,
    PromptGenerator,
    fusion_consistency,
    text_consistency,
)
from clipspm.train_heads.heads.parts.attention import Block, sinusoidal_positions
from clipspm.train_heads.heads.parts.matching import matcher
from clipspm.train_heads.heads.parts.text_scores import FUSION_CANDIDATES, fuse, text_cosine
from clipspm.train_heads.heads.protocol import Protocol


@dataclass
class Trace:
    """What one call computed on its way; None where a switch left it out. In N, supports come first."""

    raw: Tensor  #: supports and queries, [E, N, T, D]
    frames: Tensor  #: what SPM, PADM and the matching see, [E, N, T, D]
    moving: Tensor | None = None  #: frames minus their clip's mean, filtered, [E, N, T, D]
    shallow: Tensor | None = None  #: shallow motion m0, [E, N, D]
    deep: Tensor | None = None  #: deep motion m1, [E, N, D]
    refined: Tensor | None = None  #: HSMR's frames v', [E, N, T, D]
    motion_token: Tensor | None = None  #: HSMR's p', [E, N, D]
    prompt: Tensor | None = None  #: generated prompts, [E, N, D]
    support: Tensor | None = None  #: SPM's su, [E, S, T, D]
    support_token: Tensor | None = None  #: [E, S, D]
    query: Tensor | None = None  #: SPM's qu, [E, Q, T, D]
    query_token: Tensor | None = None  #: [E, Q, D]
    padm: Refined | None = None
    d0: Tensor | None = None  #: distance of what moves, [E, Q, C]
    d1: Tensor | None = None  #: [E, Q, C]
    d2: Tensor | None = None  #: [E, Q, C]
    d3: Tensor | None = None  #: [E, Q, C]
    output: HeadOutput = field(default_factory=lambda: HeadOutput(torch.empty(0)))


class CLIPSPM(Head):
    """HSMR, SPM and PADM over frame features of width ``dim``; every switch is in ``config``.

    Called as every :class:`Head`. Losses, in training mode or given ``query_labels``: ``motion``, ``text``
    and ``consistency`` (zero where their module or ``config.consistency`` is off, or ``query_labels`` are
    missing), and ``class_text`` when its weight is not zero and ``base`` is given. ``scale`` is the authors'
    unused scalar; here it multiplies ``config.text_scale`` where a text score is on.
    """

    fusion_b: Tensor  #: [] where ``config.text_fusion`` is on

    def __init__(self, dim: int, config: CLIPSPMConfig | None = None) -> None:
        super().__init__(dim=dim)
        self.config = c = config or CLIPSPMConfig()
        self.scale = nn.Parameter(torch.ones(1))
        if c.learn_logit_scale:
            self.log_logit_scale = nn.Parameter(torch.tensor(math.log(c.logit_scale)))
        if c.text_fusion:
            self.register_buffer("fusion_b", torch.tensor(float(c.fusion_b)))
        if c.hsmr:
            self.min_frames = 2
            self.motion = MotionFeatures(dim)
            self.moving = MovingFrames(c.motion_taps)
            self.w_motion = nn.Parameter(torch.tensor(float(c.w_motion)))
            if c.shallow_layer is not None and c.shallow_dim is not None:
                self.shallow_layer, self.shallow_dim = c.shallow_layer, c.shallow_dim
                self.lift = nn.Linear(c.shallow_dim, dim)
        if c.hsmr or c.spm:
            self.fusion = SemanticFusion(
                dim, self._block(), rho_v=c.rho_v, rho_t=c.rho_t, slope=c.slope, alpha=c.alpha
            )
        if c.spm:
            self.prompts = PromptGenerator(dim, width=c.ffn_width, dropout=c.ffn_dropout, prompt=c.prompt)
        if c.padm:
            self.padm = PADM(self._block())
        self.match = matcher(c.matcher, smoothing=c.smoothing)

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
        """The head with the parameters of an authors' checkpoint; see :mod:`.reference` for the names.

        ``state_dict`` may be the whole checkpoint (``{"model_state_dict": ...}``) and may hold ``backbone.*``
        entries, which are ignored. D is inferred; ``overrides`` are fields of :class:`CLIPSPMConfig`. Raises
        ValueError naming each parameter that is missing, unknown or of another shape than the preset's.
        """
        from clipspm.train_heads.heads.clipspm.reference import head_from_reference

        return head_from_reference(cls, state_dict, make_config(preset, **overrides))

    def to_reference_state(self) -> dict[str, Tensor]:
        """The parameters under the names of the authors' checkpoints; inverse of :meth:`from_reference`."""
        from clipspm.train_heads.heads.clipspm.reference import to_reference

        return to_reference(self, {name: p.detach() for name, p in self.named_parameters()})

    @property
    def trainable(self) -> bool:
        c = self.config
        learns = (
            c.hsmr
            or c.spm
            or c.padm
            or c.learn_logit_scale
            or c.fusion_in_training
            or c.class_text_weight > 0
        )
        return learns and super().trainable

    def tunable(self) -> dict[str, tuple[float, ...]]:
        return {"fusion_b": FUSION_CANDIDATES} if self.config.text_fusion else {}

    def score(self, episode: Episode) -> HeadOutput:
        if episode.support_recalled is not None and episode.query_recalled is not None:
            return HeadOutput(self._score_recalled(episode, episode.support_recalled, episode.query_recalled))
        return self._run(episode).output

    def recall(self, videos: Tensor, text: Tensor) -> tuple[Recalled, Recalled] | None:
        c = self.config
        plain = not (c.hsmr and (c.matching_input != "raw" or c.motion_weight))
        if self.training or not (c.spm and c.padm and plain) or c.position or c.text_fusion:
            return None
        kind = videos.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != torch.bfloat16:
            return None  # scores of pieces, before the norm divides them, could leave the range of fp16
        with torch.autocast(kind, enabled=False):  # once per video: exact whatever the precision
            return recall(self, videos, text) if pieces.worth_it(self.padm.block, videos) else None

    def recall_bytes(self, frames: int) -> int:
        return bytes_per_video(self, frames) if self.config.padm else 0

    def _score_recalled(self, ep: Episode, support: Recalled, query: Recalled) -> Tensor:
        """Logits [E, Q, C] from what is known of the supports and queries."""
        t = Trace(ep.query, ep.query)
        t.support = support.frames
        t.query = self.fusion.recalled(query.frames, query.projected, self.prompts(ep.query, ep.text))
        return self._match(ep, t, support.projected)

    def trace(
        self,
        support: Tensor,
        support_labels: Tensor,
        query: Tensor,
        text: Tensor,
        protocol: Protocol = "inductive",
        query_labels: Tensor | None = None,
        **more: Any,
    ) -> Trace:
        """The same call, returning every intermediate with the leading E (1 where the call has none)."""
        return self._run(
            self.prepared(Episode(support, support_labels, query, text, protocol, query_labels, **more))
        )

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        """[E]: cross-entropy summed over queries / 16, plus ``loss_weight`` times the three named terms.

        ``class_text``, a mean over videos, counts on the scale of the cross-entropy (times Q / 16).
        """
        loss = super().episode_loss(output, query_labels)
        terms = output.losses
        if terms:
            motion = self.w_motion * terms["motion"] if self.config.hsmr else terms["motion"]
            loss = loss + self.config.loss_weight * (motion + terms["text"] + terms["consistency"])
        if "class_text" in terms:
            share = query_labels.shape[-1] / EPISODES_PER_STEP
            loss = loss + self.config.class_text_weight * share * terms["class_text"]
        return loss

    # How a call goes: which terms are wanted decides which passes through SF there are; passes that do not
    # wait for one another are one batched call; the matching and the losses read what came out.

    def _run(self, ep: Episode) -> Trace:
        c, s = self.config, ep.support.shape[1]
        raw = ep.videos
        t = Trace(raw, raw)
        losses = self.training or ep.query_labels is not None
        classify = losses and c.class_text_weight > 0 and ep.base is not None
        consistent = losses and c.spm and c.consistency and ep.query_labels is not None
        text_inputs = {self._available(c.text_input)} if c.text_fusion else set()
        text_inputs |= {self._available(c.class_text_input)} if classify else set()
        feeds = c.hsmr and c.matching_input in ("refined", "refined-centered")

        passes: dict[str, tuple[Tensor, Tensor]] = {}
        if c.hsmr and (c.motion_weight or c.matching_input in ("centered", "refined-centered")):
            t.moving = self.moving(raw)
        seen = raw
        if t.moving is not None and c.matching_input == "refined-centered":
            seen = self._positioned(t.moving)
        gated = self.fusion.gate_frames(seen) if c.hsmr or c.spm else raw
        if c.hsmr and (losses or feeds or "refined" in text_inputs):
            t.shallow = self._shallow_motion(ep, seen)
            passes["motion"] = gated, t.shallow
            if feeds:  # the rest waits for it
                ((t.refined, t.motion_token),) = self.fusion(passes.pop("motion"))
        t.frames = self._matching_frames(raw, t)

        if c.spm:
            if t.frames is not seen:
                gated = self.fusion.gate_frames(t.frames)
            t.prompt = self.prompts(raw, ep.text)
            known_s, prompt_s, prompt_q = ep.text_of(ep.support_labels), t.prompt[:, :s], t.prompt[:, s:]
            passes["matched"] = gated, torch.cat([known_s, prompt_q], dim=1)
            if consistent and ep.query_labels is not None:
                passes["other"] = gated, torch.cat([prompt_s, ep.text_of(ep.query_labels)], dim=1)
            elif "modulated" in text_inputs and classify:
                passes["support as unknown"] = gated[:, :s], prompt_s
        fused = dict(zip(passes, self.fusion(*passes.values()), strict=True)) if passes else {}

        if "motion" in fused:
            t.refined, t.motion_token = fused["motion"]
        t.support, t.query = t.frames[:, :s], t.frames[:, s:]
        if c.spm:
            frames, token = fused.pop("matched")
            fused["support as known"] = t.support, t.support_token = frames[:, :s], token[:, :s]
            fused["query as unknown"] = t.query, t.query_token = frames[:, s:], token[:, s:]
        if "other" in fused:
            frames, token = fused.pop("other")
            fused["support as unknown"] = frames[:, :s], token[:, :s]
            fused["query as known"] = frames[:, s:], token[:, s:]
        logits = self._match(ep, t)
        if c.text_fusion and (c.fusion_in_training or not self.training):
            shown = self._text_frames(c.text_input, t)[:, -ep.query.shape[1] :]
            logits = fuse(logits, self._text_logits(shown, ep.text), self.fusion_b)
        terms = self._terms(ep, t, fused, consistent=consistent) if losses else {}
        if classify:
            terms["class_text"] = self._class_text(ep, t, fused)
        t.output = HeadOutput(logits, terms)
        return t

    def _shallow_motion(self, ep: Episode, seen: Tensor) -> Tensor:
        if self.shallow_layer is None:
            shallow: Tensor = self.motion(seen)
            return shallow
        if ep.support_shallow is None or ep.query_shallow is None:
            raise ValueError(
                f"support_shallow, query_shallow: found None; needed layer {self.shallow_layer!r}"
            )
        lifted: Tensor = self.lift(torch.cat([ep.support_shallow, ep.query_shallow], dim=1))
        return self.motion(lifted)

    def _matching_frames(self, raw: Tensor, t: Trace) -> Tensor:
        """What SPM, PADM and the matching see, [E, N, T, D] (T-1 for differences)."""
        c, refined = self.config, t.refined
        frames = raw
        if refined is not None and c.matching_input == "refined-centered":
            return refined  # positions, if any, were HSMR's
        if refined is not None and c.matching_input == "refined":
            frames = refined
        elif t.moving is not None and c.matching_input == "centered":
            frames = t.moving
        elif c.hsmr and c.matching_input == "difference":
            frames = raw[:, :, 1:] - raw[:, :, :-1]
        return self._positioned(frames) if c.spm or c.padm else frames

    def _positioned(self, frames: Tensor) -> Tensor:
        if not self.config.position:
            return frames
        return frames + 0.1 * sinusoidal_positions(frames.shape[2], self.dim, frames)

    def _match(self, ep: Episode, t: Trace, known: pieces.Projected | None = None) -> Tensor:
        """``-(motion_weight*D0 + 0.5*D1 + D2 + D3)``, the weights as set, times the scale; [E, Q, C]."""
        assert t.support is not None
        assert t.query is not None
        t.d1 = self.match(ep.class_mean(t.support), t.query)
        distance = self.config.d1_weight * t.d1
        if t.moving is not None and self.config.motion_weight:
            shots = ep.support.shape[1]
            t.d0 = self.match(ep.class_mean(t.moving[:, :shots]), t.moving[:, shots:])
            distance = distance + self.config.motion_weight * t.d0
        if self.config.padm:
            t.padm = self.padm(ep, t.support, t.query, known)
            t.d2, t.d3 = distances(ep, t.padm, self.match)
            distance = distance + self.config.d2_weight * t.d2 + self.config.d3_weight * t.d3
        if self.config.learn_logit_scale:
            return -distance * self.log_logit_scale.exp()
        return -distance * self.config.logit_scale

    def _terms(
        self, ep: Episode, t: Trace, fused: Mapping[str, tuple[Tensor, Tensor]], *, consistent: bool
    ) -> dict[str, Tensor]:
        c, s = self.config, ep.support.shape[1]
        zero = t.frames.new_zeros(t.frames.shape[0])
        terms = {"motion": zero, "text": zero, "consistency": zero}
        if t.refined is not None and t.motion_token is not None:
            t.deep = self.motion(t.refined)
            terms["motion"] = motion_consistency(t.deep, t.motion_token, s)
        if consistent:
            assert t.prompt is not None
            assert ep.query_labels is not None
            prompt = t.prompt
            supports, queries = (
                Branches(ep.text_of(labels), p, fused[f"{who} as known"], fused[f"{who} as unknown"])
                for who, labels, p in (
                    ("support", ep.support_labels, prompt[:, :s]),
                    ("query", ep.query_labels, prompt[:, s:]),
                )
            )
            terms["text"] = text_consistency(queries, supports, c.w_text)
            terms["consistency"] = fusion_consistency(queries, supports, c.w_c)
        return terms

    # Text scores.

    def _available(self, wanted: TextInput) -> TextInput:
        """``wanted``, or what stands in for it when its module is off."""
        if wanted == "modulated" and not self.config.spm:
            wanted = "refined"
        return "raw" if wanted == "refined" and not self.config.hsmr else wanted

    def _text_frames(self, wanted: TextInput, t: Trace) -> Tensor:
        """Frames that meet the texts, [E, N, T, D]; only the queries' where those are modulated."""
        source = self._available(wanted)
        frames = {"raw": t.raw, "refined": t.refined, "modulated": t.query}[source]
        assert frames is not None
        return frames

    def _text_logits(self, frames: Tensor, text: Tensor) -> Tensor:
        """Scaled cosine of mean frames [E, N, T, D] with ``text`` [E, C, D] or [B, D], [E, N, C]."""
        return text_cosine(frames, text) * (self.config.text_scale * self.scale)

    def _class_text(self, ep: Episode, t: Trace, fused: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Mean over videos of the cross-entropy against all base classes, [E]."""
        assert ep.base is not None
        frames = self._text_frames(self.config.class_text_input, t)
        if (
            self._available(self.config.class_text_input) == "modulated"
        ):  # supports without their class's text
            frames = torch.cat([fused["support as unknown"][0], frames], dim=1)
        labels = torch.cat([ep.base.support, ep.base.query], dim=1)
        return cross_entropy(self._text_logits(frames, ep.base.text), labels).mean(1)
