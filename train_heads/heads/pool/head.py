"""The default head: evidence of frozen features, pooled, and beneath it whatever CLIP-SPM learns on top.

Shapes: E episodes, S supports, Q queries, C classes (ways), K pieces of evidence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import Head, HeadOutput, Scorer
from clipspm.train_heads.heads.clipspm.config import CLIPSPMConfig
from clipspm.train_heads.heads.clipspm.head import CLIPSPM
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.evidence import Evidence
from clipspm.train_heads.heads.parts.otam import full
from clipspm.train_heads.heads.parts.text_scores import text_cosine
from clipspm.train_heads.heads.pool.fits import fit_factor, fit_weights, log_likelihood
from clipspm.train_heads.heads.pool.kinds import KINDS, Cosines, class_scores, products, spread
from clipspm.train_heads.heads.pool.tables import Tables

TEXT = "text"
#: numbers of shots that weights and temperature are measured for; more shots take the last
MOST_SHOTS = 5
#: rate of the exponential prior of the text's factor where it was not measured; its bounds where it was
_RATE, _RATES = 4 / 3, (0.3, 3.0)
#: shares of the kinds before anything is known: what is seen as much as what moves
_PRIOR = {"look": 1.7, "still": 0.3, "move": 1.0, "drift": 1.0}
#: factor of the pooled evidence where it was not measured on training classes
_UNMEASURED = 1.5
#: the least factor of the pooled evidence: priors are as wide as they are large
_LEAST = 0.05
#: rate where a factor is fitted to many labels: it tells only where all of them are right
_FEW = 1.0
#: standard deviation of the prior of the weights that suit the training classes, in units of its mean
_WIDE = 2.0
#: candidates of the learned evidence's weight, and of the share of the weights that suit the training classes
_LEARNED, _TRUST = (0.0, 0.25, 0.5, 1.0), (0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Known:
    """What the supports tell: scores of each left out of its prototype, [E, K, S, C]; of its texts [E, S, C].

    ``familiar``: how far what was measured on training classes counts, 0 to 1, [E]; ``learned``: what the
    learned part kept for its losses.
    """

    left_out: Tensor
    text: Tensor | None
    familiar: Tensor
    learned: Evidence | None


class EvidencePool(Head):
    """A weighted sum of evidence that needs no training, weighed by the supports of each episode.

    Evidence: for each cached layer ``look/LAYER``, ``still/LAYER``, ``move/LAYER`` and ``drift/LAYER``
    (:mod:`.kinds`), divided by its spread between the episode's supports; ``text``; and that of CLIP-SPM,
    trained with the rest as an offset, whose weight is chosen on validation classes (0: it is not used, as
    before training). :meth:`calibrate` measures one factor, and weights, on training classes. At one shot
    equal weights and those are mixed one to three, or as validation classes say; from two shots on, by how
    likely each makes the supports, left out of their own prototypes, and refined on these. The factor of the
    text is fitted to the supports, and mixed likewise with the one that suits the training classes. Where
    supports look like another data set (:meth:`familiar`), those weights and the learned evidence do not
    count.
    """

    probable = True
    equal: Tensor  #: shares of the pieces before anything is known, [K]
    factors: Tensor  #: of the sum of equal weights, by shots [5]
    fitted: Tensor  #: weights that suit the training classes, by shots [5, K]
    told: Tensor  #: factor of the text that suits them, by shots [5]
    rate: Tensor  #: of the exponential prior of that factor: one over what suits them, by shots [5]
    trust: Tensor  #: the share of those weights where supports cannot tell
    centre: Tensor  #: mean frame of training classes, [D]
    variance: Tensor  #: of their clips' mean frames, summed over D; 0: not measured
    learned_weight: Tensor
    temperature: Tensor

    def __init__(
        self, dim: int, config: CLIPSPMConfig, *, layer_dims: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(dim=dim, layer_dims=layer_dims)
        c = self.config = config
        for layer in c.without:
            self.width_of(layer, "without")
        layers = [layer for layer in self.layer_dims if layer not in c.without]
        kinds = [kind for kind in KINDS if getattr(c, kind)]
        self.names = tuple(f"{kind}/{layer}" for layer in layers for kind in kinds)
        self.learned = CLIPSPM(dim, c, layer_dims=layer_dims) if c.hsmr or c.spm or c.padm else None
        self.needs_text = c.text or (self.learned is not None and self.learned.needs_text)
        if not self.names and not c.text:
            raise ValueError("look, still, move, drift, text: found none; needed one or more")
        read = (*(layers if kinds else ()), FINAL, *(self.learned.layers if self.learned else ()))
        self.layers = tuple(dict.fromkeys(read))
        parts = [_PRIOR[name.split("/")[0]] for name in self.names]
        shares = [part / sum(parts) for part in parts]
        # no arithmetic with tensors: on the meta device it imports PyTorch's compiler, which takes seconds
        self.register_buffer("equal", torch.tensor(shares), persistent=False)
        self.register_buffer("factors", torch.full((MOST_SHOTS,), _UNMEASURED))
        self.register_buffer("fitted", torch.tensor([[_UNMEASURED * x for x in shares]] * MOST_SHOTS))
        self.register_buffer("told", torch.zeros(MOST_SHOTS))
        self.register_buffer("rate", torch.full((MOST_SHOTS,), _RATE))
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("trust", torch.tensor(0.75))
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("variance", torch.tensor(0.0))
        self.register_buffer("learned_weight", torch.tensor(0.0))
        if self.learned is not None:
            self.min_frames, self.unused = self.learned.min_frames, ("learned.scale",)
            self.needs_unseen = True
            self.tunable, self.reluctant = {"learned_weight": _LEARNED}, ("learned_weight",)
        if self.names:
            self.tunable = {**self.tunable, "trust": _TRUST}

    @property
    def trainable(self) -> bool:
        return self.learned is not None and self.learned.trainable

    def scores(self, episode: Episode) -> Evidence:
        learned = self.learned.scores(episode) if self.learned is not None and self._learns() else None
        return self._seen(episode, learned)

    def familiar(self, supports: Tensor, one_hot: Tensor) -> Tensor:
        """Return how far episodes with these supports are of the training classes' kind, 0 to 1: [E].

        ``supports`` [E, S, D] are mean frames. The product of two of different classes, each minus the mean
        of the training classes, is on average the squared distance of their data set's mean from that mean.
        Up to half the variance of clips gives 1; all of it, or more, 0.
        """
        if not bool(self.variance > 0):
            return supports.new_ones(len(supports))
        with torch.autocast(supports.device.type, enabled=False):
            return (2 - 2 * products(full(supports) - self.centre, one_hot) / self.variance).clamp(0, 1)

    def weighed(
        self,
        episode: Episode,
        found: Mapping[str, Cosines],
        texts: tuple[Tensor, Tensor] | None,
        familiar: Tensor,
        learned: Evidence | None = None,
    ) -> Evidence:
        """Make evidence of cosines by piece, and of cosines with ``texts`` of supports and queries."""
        evidence, left_out = {}, []
        with torch.autocast(episode.text.device.type, enabled=False):
            for name, cosines in found.items():
                scale = 1 / spread(cosines, episode.one_hot)[:, None, None]
                queries, supports = class_scores(cosines, episode.one_hot)
                evidence[name] = queries * scale
                left_out.append(supports * scale)
        known = None
        if texts is not None:
            scale = 1 / texts[0].std(-1, correction=0).mean(-1).clamp(min=1e-4)[:, None, None]
            known, evidence[TEXT] = (x * scale for x in texts)
        evidence |= learned or {}
        stacked = torch.stack(left_out, 1) if left_out else episode.text.new_zeros(0)
        return Evidence(evidence, kept=Known(stacked, known, familiar, learned))

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        assert isinstance(scores, Evidence)
        known: Known = scores.kept
        with torch.no_grad(), torch.autocast(episode.text.device.type, enabled=False):
            logits = self._pooled(episode, scores)
        if known.learned is not None and self.learned is not None:
            weight = 1.0 if self.training else self.learned_weight * known.familiar[:, None, None]
            learned = Evidence({name: scores[name] for name in known.learned}, known.learned.kept)
            logits = logits + weight * self.learned.combine(episode, learned)
        return logits / self.temperature

    def losses(
        self, episode: Episode, scores: Evidence, query_labels: Tensor, base: BaseClasses | None
    ) -> dict[str, Tensor]:
        if self.learned is None or scores.kept.learned is None:
            return {}
        return self.learned.losses(episode, scores.kept.learned, query_labels, base)

    def episode_loss(self, output: HeadOutput, query_labels: Tensor) -> Tensor:
        if self.learned is None:
            return super().episode_loss(output, query_labels)
        return self.learned.episode_loss(output, query_labels)

    def start_training(self) -> None:
        self.learned_weight.fill_(1.0)

    @torch.no_grad()
    def calibrate(self, shots: int, episodes: Iterable[tuple[Episode, Tensor]]) -> None:
        given = [(episode.batched(), labels) for episode, labels in episodes]
        videos, one_hot = (
            torch.cat(x) for x in zip(*((_means(e), e.one_hot) for e, _ in given), strict=True)
        )
        self.centre.copy_(videos.mean((0, 1)))
        between = products(videos - self.centre, one_hot).mean()
        self.variance.copy_((videos - self.centre).square().sum(-1).mean() - between)
        evidence = [self._seen(episode, None) for episode, _ in given]
        labels = torch.cat([truth.flatten() for _, truth in given]).unsqueeze(0)
        rows = slice(shots - 1, None)  # more shots too, until they are measured

        def all_of(name: str) -> Tensor:  # [1, N, C]
            return torch.cat([found[name].flatten(0, 1) for found in evidence]).unsqueeze(0)

        pooled = None
        if self.names:
            scores = torch.stack([all_of(name) for name in self.names], 1)
            equal = torch.einsum("k,ekvc->evc", self.equal, scores)
            factor = fit_factor(equal, labels, None, _FEW)[0].clamp(min=_LEAST)
            prior = factor * self.equal
            self.factors[rows] = factor.to(self.factors)
            self.fitted[rows] = fit_weights(scores, labels, prior, _WIDE * prior)[0].to(self.fitted)
            pooled = torch.cat(
                [
                    self._visual(episode, found)[0].flatten(0, 1)
                    for (episode, _), found in zip(given, evidence, strict=True)
                ]
            ).unsqueeze(0)
        if self.config.text:
            told = fit_factor(all_of(TEXT), labels, pooled, _FEW)[0].to(self.told)
            self.told[rows], self.rate[rows] = told, (1 / told).clamp(*_RATES)

    def recall(self, videos: Mapping[str, Tensor], text: Tensor) -> Scorer | None:
        return None if self._learns() else Tables.of(self, videos)

    def _learns(self) -> bool:
        """Return whether the learned evidence counts."""
        return self.training or bool(self.learned_weight != 0)

    def _seen(self, episode: Episode, learned: Evidence | None) -> Evidence:
        """Make all evidence of an episode's features, beside what is learned."""
        familiar = self.familiar(_means(episode), episode.one_hot)
        return self.weighed(episode, self._cosines(episode), self._texts(episode), familiar, learned)

    def _cosines(self, episode: Episode) -> dict[str, Cosines]:
        found = {}
        for name in self.names:
            kind, layer = name.split("/", 1)
            found[name] = KINDS[kind](episode.support[layer], episode.query[layer])
        return found

    def _texts(self, episode: Episode) -> tuple[Tensor, Tensor] | None:
        if not self.config.text:
            return None
        support, query = (text_cosine(x[FINAL], episode.text) for x in (episode.support, episode.query))
        return support, query

    def _pooled(self, episode: Episode, scores: Evidence) -> Tensor:
        """Return the logits of the evidence that is not learned, [E, Q, C]."""
        if not self.names:
            return self._text_factor(episode, scores, None) * scores[TEXT]
        logits, offset = self._visual(episode, scores)
        if TEXT in scores:
            logits = logits + self._text_factor(episode, scores, offset) * scores[TEXT]
        return logits

    def _visual(self, episode: Episode, scores: Evidence) -> tuple[Tensor, Tensor | None]:
        """Return the logits of what is seen, [E, Q, C], and of left-out supports (or 0), [E, S, C]."""
        apart, left_out = episode.shots.amin(1) > 1, scores.kept.left_out.double()
        familiar = scores.kept.familiar.double()
        weights = self._weights(episode, familiar, None)
        if bool(apart.any()):
            refined = self._weights(episode, familiar, left_out)
            weights = torch.where(apart.unsqueeze(1), refined, weights)
        visual = torch.stack([scores[name] for name in self.names], 1)
        logits = torch.einsum("ek,ekqc->eqc", weights.to(visual), visual)
        offset = torch.einsum("ek,eksc->esc", weights, left_out)
        return logits, torch.where(apart[:, None, None], offset, 0.0)

    def _text_factor(self, episode: Episode, scores: Evidence, offset: Tensor | None) -> Tensor:
        """Return the factor of the text in each episode, [E, 1, 1]."""
        text, labels = scores.kept.text.double(), episode.support_labels
        row = self._row(episode)
        found, told = fit_factor(text, labels, offset, self.rate.double()[row]), self.told.double()[row]
        beside = torch.zeros_like(text) if offset is None else offset
        gain = log_likelihood(beside + told[:, None, None] * text, labels) - log_likelihood(beside, labels)
        factor = found + gain.sigmoid() * (told - found).clamp(min=0)
        return factor[:, None, None].to(scores[TEXT])

    def _row(self, episode: Episode) -> Tensor:
        """Return which row of what was measured by shots is that of each episode, [E]."""
        return episode.shots.mean(1).round().long().clamp(1, MOST_SHOTS) - 1

    def _weights(self, episode: Episode, familiar: Tensor, left_out: Tensor | None) -> Tensor:
        """Return the weights of the pieces, [E, K]; ``left_out`` [E, K, S, C] where supports can tell."""
        row = self._row(episode)
        equal = self.factors.double()[row].unsqueeze(1) * self.equal.double()
        fitted = self.fitted.double()[row]
        if left_out is None:
            return equal + self.trust.double() * familiar.unsqueeze(1) * (fitted - equal)
        left_out, labels = left_out.double(), episode.support_labels
        likely = torch.stack(
            [
                log_likelihood(torch.einsum("ek,eksc->esc", weights, left_out), labels)
                for weights in (equal, fitted)
            ],
            1,
        )
        likely[:, 1] += familiar.log()
        mixed = torch.einsum("em,emk->ek", likely.softmax(1), torch.stack([equal, fitted], 1))
        refined = fit_weights(left_out, labels, mixed, torch.maximum(mixed, equal / 2))
        # a support that is left out has fewer clips of its own class beside it than of the others, among them
        # others of its own recording: it tells what counts most, not that all of it counts less
        before, after = mixed.sum(1, keepdim=True), refined.sum(1, keepdim=True)
        return torch.where(after > _LEAST * before, refined * (before / after).clamp(min=1), mixed)


def _means(episode: Episode) -> Tensor:
    """Return the mean frames of the supports, [E, S, D]."""
    return full(episode.support[FINAL]).mean(2)
