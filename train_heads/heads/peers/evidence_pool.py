"""The evidence of frozen features, pooled: how videos look, how they move, and what their classes are called."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.evidence import Evidence
from clipspm.train_heads.heads.parts import pool
from clipspm.train_heads.heads.parts.text_scores import text_cosine

KINDS = {"look": pool.look, "move": pool.move}
TEXT = "text"
#: rate of the exponential prior of the text's factor
_TEXT_PENALTY = 0.75


class LeftOut(NamedTuple):
    """What is known of the supports: ``visual`` [E, K, S, C], each left out of its prototype; ``text`` [E, S, C]."""

    visual: Tensor | None
    text: Tensor | None


class EvidencePool(Head):
    """A weighted sum of evidence that needs no training, weighed by the supports of each episode.

    Evidence: ``look/LAYER`` and ``move/LAYER`` for each of ``layers``, and ``text``. :meth:`calibrate` measures,
    on episodes of training classes, the spread of each (all are divided by it), one temperature, and weights
    that suit those classes; without it, spreads and temperature are 1. At one shot the weights are the mean of
    equal ones and those; from two shots on, the mixture of both by which each episode's left-out supports are
    likely, refined on them. The text's factor is fitted to the supports at every shot.
    """

    spreads: Tensor
    fitted: Tensor
    temperature: Tensor

    def __init__(
        self,
        *,
        dim: int,
        layer_dims: Mapping[str, int] | None = None,
        look: bool = True,
        move: bool = True,
        text: bool = True,
        without: tuple[str, ...] = (),
    ) -> None:
        """``without``: layers to leave out."""
        super().__init__(dim=dim, layer_dims=layer_dims)
        self.layers = tuple(layer for layer in self.layer_dims if layer not in without)
        kinds = [kind for kind, wanted in (("look", look), ("move", move)) if wanted]
        self.names = tuple(f"{kind}/{layer}" for layer in self.layers for kind in kinds)
        self.text = text
        if not self.names and not text:
            raise ValueError("look, move, text: found none; needed one or more")
        if FINAL not in self.layers:  # the text reads it
            self.layers = (*self.layers, FINAL)
        count = len(self.names)
        self.register_buffer("spreads", torch.ones(count + 1))
        self.register_buffer("fitted", torch.full((count,), 1 / max(count, 1)))
        self.register_buffer("temperature", torch.tensor(1.0))

    def scores(self, episode: Episode) -> Evidence:
        queries, supports = self._visual(episode)
        spreads = self.spreads.to(queries[0] if queries else self.spreads)
        found = {name: x / spread for name, x, spread in zip(self.names, queries, spreads, strict=False)}
        visual = text = None
        if queries and int(episode.shots.min()) > 1:
            visual = torch.stack(supports, 1) / spreads[:-1].view(-1, 1, 1)
        if self.text:
            found[TEXT] = text_cosine(episode.query[FINAL], episode.text) / spreads[-1]
            text = text_cosine(episode.support[FINAL], episode.text) / spreads[-1]
        return Evidence(found, kept=LeftOut(visual, text))

    def combine(self, episode: Episode, scores: Mapping[str, Tensor]) -> Tensor:
        left_out: LeftOut = scores.kept if isinstance(scores, Evidence) else LeftOut(None, None)
        labels, logits, offset = episode.support_labels, None, None
        if self.names:
            weights = self._weights(left_out.visual, labels)
            visual = torch.stack([scores[name] for name in self.names], 1)
            logits = torch.einsum("ek,ekqc->eqc", weights.to(visual).expand(len(visual), -1), visual)
            if left_out.visual is not None:
                offset = torch.einsum("ek,eksc->esc", weights, left_out.visual.to(weights))
        if TEXT in scores and left_out.text is not None:
            factor = pool.fit_factor(left_out.text, labels, offset, _TEXT_PENALTY).to(scores[TEXT])
            told = factor[:, None, None] * scores[TEXT]
            logits = told if logits is None else logits + told
        assert logits is not None
        return logits

    @torch.no_grad()
    def calibrate(self, episodes: Iterable[tuple[Episode, Tensor]]) -> None:
        """Measure spreads, temperature and weights on ``episodes`` of training classes with query labels [E, Q]."""
        visual, texts, truth = [], [], []
        for episode, labels in episodes:
            whole = episode.batched()
            queries, _ = self._visual(whole)
            visual += [torch.stack(queries, 1).transpose(0, 1).flatten(1, 2)] if queries else []
            texts.append(text_cosine(whole.query[FINAL], whole.text).flatten(0, 1))
            truth.append(labels.flatten())
        labels = torch.cat(truth).unsqueeze(0)
        self.spreads[-1] = pool.spread(torch.cat(texts))
        if not visual:
            return
        scores = torch.cat(visual, 1)  # [K, N, C]
        self.spreads[:-1] = scores.std(-1, correction=0).mean(-1)
        scores = (scores / self.spreads[:-1, None, None]).unsqueeze(0)
        self.temperature.copy_(pool.fit_factor(scores.mean(1), labels, None, 0.0)[0])
        equal = self._equal()
        self.fitted.copy_(pool.fit_weights(scores, labels, equal, equal)[0])

    def _equal(self) -> Tensor:
        return (self.temperature / max(len(self.names), 1)).expand(len(self.names))

    def _visual(self, episode: Episode) -> tuple[list[Tensor], list[Tensor]]:
        """Scores of queries [E, Q, C] and of left-out supports [E, S, C] by each piece, before any scale."""
        queries, supports = [], []
        for name in self.names:
            kind, layer = name.split("/", 1)
            found = KINDS[kind](episode.support[layer], episode.query[layer])
            one_hot = episode.one_hot.to(found.queries)
            queries.append(pool.to_classes(found.queries, one_hot))
            supports.append(pool.left_out(found.supports, one_hot))
        return queries, supports

    def _weights(self, left_out: Tensor | None, labels: Tensor) -> Tensor:
        """Weights of the pieces [E, K], or [1, K] where nothing is known of the supports."""
        equal, fitted = self._equal().double(), self.fitted.double()
        if left_out is None:
            return ((equal + fitted) / 2).unsqueeze(0)
        left_out = left_out.double()
        likely = torch.stack(
            [
                pool.log_likelihood(torch.einsum("k,eksc->esc", weights, left_out), labels)
                for weights in (equal, fitted)
            ],
            1,
        ).softmax(1)
        mixed = likely @ torch.stack([equal, fitted])
        return pool.fit_weights(left_out, labels, mixed, mixed.clamp(min=equal / 2))
