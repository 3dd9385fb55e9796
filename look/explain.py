"""What a head sees in the cached features: evidence, alignment, motion, and where videos lie.

Shapes: n episodes, E of a batch, Q queries, C classes (ways), T frames, D width, V videos, K classes in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipspm.errors import ClipspmError
from clipspm.look.gather import Facts, Query
from clipspm.look.inside import BEFORE, stages
from clipspm.look.subject import Floats, Subject, of_queries
from clipspm.train_heads.episodes.draw import check_request
from clipspm.train_heads.evaluation.predict import predict
from clipspm.train_heads.evaluation.stats import Difference, Estimate, accuracies, estimate, paired
from clipspm.train_heads.heads.clipspm.head import SMOOTHING
from clipspm.train_heads.heads.parts.otam import frame_distance, otam_distance

#: most videos, and most classes, in a picture of where they lie
MOST_VIDEOS, MOST_CLASSES = 160, 24
#: smoothing so small that one path is left
_SHARP = 1e-3
#: neighbours that are counted
NEIGHBOURS = 5


@dataclass(frozen=True)
class Piece:
    """A kind of evidence: accuracy of it ``alone``, what leaving it out costs, its share of the margin."""

    name: str
    alone: Estimate
    cost: Difference
    share: float


def contributions(subject: Subject, episodes: int) -> tuple[Piece, ...]:
    """Measure what each kind of evidence contributes; the others, or it, are set to zero in the logits.

    Its share of the margin is what the margin loses without it; shares add up to one where logits are a sum.
    """
    kinds = subject.pieces()
    every = tuple(name for names in kinds.values() for name in names)
    rows: dict[str, list[tuple[Floats, Floats, Floats]]] = {kind: [] for kind in kinds}
    whole: list[tuple[Floats, Floats]] = []
    with subject.looking():
        for reading in subject.read(subject.draw(episodes)):
            logits = reading.logits()
            whole.append((reading.right(logits), reading.margin(logits)))
            for kind, names in kinds.items():
                rest = tuple(name for name in every if name not in names)
                without = reading.logits(names)
                alone = reading.right(reading.logits(rest))
                rows[kind].append((alone, reading.right(without), reading.margin(without)))
    right, margin = (np.concatenate(x) for x in zip(*whole, strict=True))
    found = []
    for kind, parts in rows.items():
        single, rest_right, left = (np.concatenate(x) for x in zip(*parts, strict=True))
        share = float(1 - left.mean() / margin.mean()) if margin.mean() > 0 else float("nan")
        found.append(Piece(kind, estimate(single), paired(right, rest_right), share))
    return tuple(found)


def over_shots(subject: Subject, episodes: int, most: int = 5) -> tuple[tuple[int, Estimate], ...]:
    """Score the run's weights at one, three, five shots and its own, as far as the classes have videos."""
    found = []
    for shots in sorted({1, 3, most, subject.config.shots}):
        try:
            check_request(subject.bank.pool, way=min(subject.config.way, len(subject.bank.pool.names)),
                          shot=shots, queries=1)  # fmt: skip
        except ClipspmError:
            break
        drawn = subject.draw(episodes, shots=shots)
        chosen = predict(
            subject.head, subject.bank, drawn, frames=subject.frames, protocol="inductive",
            precision=subject.config.precision,
        )  # fmt: skip
        found.append((shots, estimate(accuracies(chosen, drawn))))
    return tuple(found)


@dataclass(frozen=True)
class Alignment:
    """A query against each class of its episode, at one stage.

    ``similarity`` [C, T, T]: cosines of the query's frames (rows) and the prototype's; ``path`` [C, T, T]:
    the share of OTAM's soft paths through each cell, mean of both directions; ``best`` [C, T, T]: the same of
    the shortest path alone, along the prototype's frames; ``distance`` [C].
    """

    query: Query
    stage: str
    classes: tuple[str, ...]
    similarity: Floats
    path: Floats
    best: Floats
    distance: Floats


def alignments(subject: Subject, facts: Facts, queries: Sequence[Query]) -> tuple[Alignment, ...]:
    """Align ``queries`` with the prototypes of their episodes: as cached, and after the modules."""
    drawn = facts.evaluation.episodes
    found = []
    for query in queries:
        one = drawn[query.episode : query.episode + 1]
        names = tuple(drawn.class_names[c] for c in one.classes[0])
        with subject.looking():
            reading = next(subject.read(one))
            by_stage = stages(reading)
        last = list(by_stage)[-1]
        for name in dict.fromkeys((BEFORE, last)):
            stage = by_stage[name]
            frames, prototypes = stage.queries[0, query.place], stage.prototypes[0, query.place]
            distance = frame_distance(frames.float(), prototypes.float())  # [C, T, T]
            path, total = _paths(distance, bidirectional=True, smoothing=SMOOTHING)
            best, _ = _paths(distance, bidirectional=False, smoothing=_SHARP)
            numbers = (_numbers(x) for x in (1 - distance, path / 2, best, total))
            found.append(Alignment(query, name, names, *numbers))
    return tuple(found)


def _paths(distance: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
    """Return the share of OTAM's paths through each cell [C, T, T], summed over directions, and distances."""
    with torch.enable_grad():
        cells = distance.detach().clone().requires_grad_()
        total = otam_distance(cells, **how)
        (share,) = torch.autograd.grad(total.sum(), cells)
    return share, total.detach()


@dataclass(frozen=True)
class Motion:
    """Which frames carry motion.

    ``energy`` [K, T]: by class, the mean share of each frame in its clip's squared distance from its mean
    frame; ``names`` [K]. ``loss`` [T]: the share of the margin that is lost when that frame of the queries is
    replaced by the clip's mean frame. ``clips``: example videos with their own shares, [T].
    """

    names: tuple[str, ...]
    energy: Floats
    loss: Floats
    clips: tuple[tuple[str, str, Floats], ...]


def motion(subject: Subject, episodes: int, clips: int = 6) -> Motion:
    """Measure the frames' shares of motion, and what the head loses without each."""
    pool = subject.bank.pool
    frames = subject.features(np.arange(len(pool.ids)))
    square = (frames - frames.mean(1, keepdim=True)).square().sum(-1)
    shares = _numbers(square / square.sum(1, keepdim=True).clamp(min=1e-12))
    energy = np.stack([shares[pool.labels == c].mean(0) for c in range(len(pool.names))])
    drawn = subject.draw(episodes)
    margins = []
    with subject.looking():
        for t in (None, *range(subject.frames)):
            change = None if t is None else of_queries(lambda x, t=t: _without(x, t))  # type: ignore[misc]
            margins.append(np.concatenate([r.margin(r.logits()) for r in subject.read(drawn, change)]).mean())
    whole, rest = margins[0], np.array(margins[1:])
    loss = 1 - rest / whole if whole > 0 else np.full(len(rest), np.nan)
    firsts = [int(pool.starts[c]) for c in range(len(pool.names)) if pool.sizes[c]]
    step = max(1, len(firsts) // clips)
    examples = tuple((pool.ids[v], pool.names[pool.labels[v]], shares[v]) for v in firsts[::step][:clips])
    return Motion(pool.names, energy, loss, examples)


def _without(x: Tensor, t: int) -> Tensor:
    """Replace frame ``t`` of clips [E, Q, T, D] by the clip's mean frame."""
    changed = x.clone()
    changed[:, :, t] = x.mean(2)
    return changed


@dataclass(frozen=True)
class Placed:
    """Where videos lie at one stage: two coordinates by ``method``, [V, 2], and how pure neighbourhoods are.

    ``neighbours``: the mean share of a video's nearest five, by cosine of all frames, that are of its class.
    """

    stage: str
    method: str
    points: Floats
    neighbours: float


@dataclass(frozen=True)
class Places:
    """Videos of the test classes before and after the modules; ``labels`` [V] are rows of ``names``."""

    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    placed: tuple[Placed, ...]


def places(subject: Subject, episodes: int) -> Places:
    """Place test videos by PCA and t-SNE of all their frames, as cached and as the head sees them as queries.

    What a query becomes depends on its episode: it is averaged over those in which it is drawn.
    """
    pool = subject.bank.pool
    sums: dict[str, Tensor] = {}
    count = torch.zeros(len(pool.ids), device=subject.bank.device)
    drawn = subject.draw(episodes)
    start = 0
    with subject.looking():
        for reading in subject.read(drawn):
            part = drawn[start : start + len(reading.labels)]
            start += len(reading.labels)
            rows = torch.from_numpy(np.ascontiguousarray(part.query)).to(count.device).flatten()
            for name, stage in stages(reading).items():
                flat = stage.queries.float().flatten(2).flatten(0, 1)  # [E*Q, T*D]
                if name not in sums:
                    sums[name] = flat.new_zeros(len(pool.ids), flat.shape[-1])
                sums[name].index_add_(0, rows, flat)
            count.index_add_(0, rows, torch.ones_like(rows, dtype=count.dtype))
    seen = _balanced(pool.labels, (count > 0).cpu().numpy())
    labels = pool.labels[seen]
    found: list[Placed] = []
    for name in dict.fromkeys((BEFORE, list(sums)[-1])):
        where = (sums[name] / count.clamp(min=1).unsqueeze(-1))[torch.from_numpy(seen).to(count.device)]
        vectors = _numbers(where)
        pure = _purity(vectors, labels)
        reduced = _pca(vectors, 30)
        found.append(Placed(name, "PCA", reduced[:, :2], pure))
        found.append(Placed(name, "t-SNE", _tsne(reduced), pure))
    return Places(pool.names, labels, tuple(found))


def _balanced(labels: npt.NDArray[np.int64], seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the rows of at most :data:`MOST_VIDEOS` videos that were seen, shared out over the classes."""
    classes = np.unique(labels[seen])[:MOST_CLASSES]
    each = max(1, MOST_VIDEOS // max(1, len(classes)))
    rows = [np.flatnonzero(seen & (labels == c))[:each] for c in classes]
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


def _pca(vectors: Floats, dims: int) -> Floats:
    """Return the first principal components of ``vectors`` [V, D]; each points where its largest entry is."""
    centred = vectors - vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    found = left[:, :dims] * values[:dims]
    if found.shape[1] < 2:
        found = np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    most = np.abs(found).argmax(0)
    return np.asarray(found * np.where(found[most, np.arange(found.shape[1])] < 0, -1, 1))


def _tsne(vectors: Floats) -> Floats:
    """Return two coordinates by t-SNE (JMLR 9, pages 2579-2605) from principal components [V, D]."""
    if len(vectors) < 8:
        return vectors[:, :2]
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(20.0, (len(vectors) - 1) / 3)
    how = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=300, learning_rate="auto")
    with threadpool_limits(1):  # the same points every time, and for so few the fastest
        return np.asarray(how.fit_transform(vectors.astype(np.float32)), dtype=np.float64)


def _purity(vectors: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Return the mean share of the nearest neighbours by cosine that are of a video's own class."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    near = np.argsort(-alike, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(labels) - 1)]
    return float((labels[near] == labels[:, None]).mean()) if near.size else float("nan")


def _numbers(x: Tensor) -> Floats:
    return x.detach().double().cpu().numpy()
