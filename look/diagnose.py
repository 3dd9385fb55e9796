"""The paper's three challenges, measured: time, look-alikes, and the gap between texts and videos.

Everything is inductive, on test episodes that are drawn for it. Shapes: n episodes, E of a batch, Q queries,
C classes (ways), T frames, D width.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipspm.look.inside import Stage, stages
from clipspm.look.subject import Change, Floats, Subject, of_queries, stilled
from clipspm.progress import track
from clipspm.tables import Table, chance
from clipspm.train_heads.evaluation.stats import Difference, Estimate, bootstrap_means, estimate, paired
from clipspm.train_heads.experiments.ablation_table import signed

AS_IT_IS, STILL = "as they are", "supports and queries stand still"
#: most pairs of classes that are looked at
MOST_PAIRS = 10


@dataclass(frozen=True)
class Time:
    """What the order of frames and their motion are worth.

    ``accuracies``: by change, [n]. ``static``: the share of the margin (logit of the true class less the mean
    of the others) that is left when nothing moves, with its 95 % interval.
    """

    way: int
    accuracies: dict[str, Floats]
    static: tuple[float, float, float]

    def effects(self) -> dict[str, Difference]:
        """Return what each change costs, paired by episode."""
        plain = self.accuracies[AS_IT_IS]
        return {name: paired(plain, x) for name, x in self.accuracies.items() if name != AS_IT_IS}


@dataclass(frozen=True)
class Pair:
    """Two classes whose mean features are alike: ``cosine`` of these, less the mean of all classes."""

    first: str
    second: str
    cosine: float


@dataclass(frozen=True)
class LookAlikes:
    """Two-way episodes of the pairs of classes that look most alike, and of any two.

    ``alike``, ``any``: by row, the accuracy of each episode, [n]; ``by_pair``: by row, of each of ``pairs``.
    """

    pairs: tuple[Pair, ...]
    alike: dict[str, Floats]
    any: dict[str, Floats]
    by_pair: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Gap:
    """Cosine distances at one stage, each [n], to the same class and to others.

    ``apart``: how far the centres of normalised texts and of normalised videos are apart.
    """

    text_prototype: tuple[Floats, Floats]
    text_query: tuple[Floats, Floats]
    prototype_query: tuple[Floats, Floats]
    apart: Floats

    def rows(self) -> dict[str, tuple[Floats, Floats]]:
        """Return the three pairs of distances by name: (same class, other classes)."""
        return {
            "text to prototype": self.text_prototype,
            "text to query": self.text_query,
            "prototype to query": self.prototype_query,
        }


@dataclass(frozen=True)
class Diagnosis:
    """The three measurements of the first of some runs; ``look_alikes`` has a row for each."""

    name: str
    dataset: str
    request: str
    episodes: int
    time: Time
    look_alikes: LookAlikes | None
    gaps: dict[str, Gap]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``; fractions, not per cent."""
        low_high = dict(zip(("share", "low", "high"), self.time.static, strict=True))
        alike = self.look_alikes
        return {
            "run": self.name,
            "dataset": self.dataset,
            "request": self.request,
            "episodes": self.episodes,
            "time": {
                "accuracy": {name: _plain(x) for name, x in self.time.accuracies.items()},
                "cost": {name: x.as_dict() for name, x in self.time.effects().items()},
                "margin_without_motion": low_high,
            },
            "look_alikes": alike
            and {
                "pairs": [asdict(pair) for pair in alike.pairs],
                "rows": {
                    name: {
                        "alike": _plain(alike.alike[name]),
                        "any": _plain(alike.any[name]),
                        "by_pair": list(alike.by_pair[name]),
                    }
                    for name in alike.alike
                },
            },
            "gap": {
                stage: {
                    **{
                        name: {"same": _plain(same), "other": _plain(other)}
                        for name, (same, other) in gap.rows().items()
                    },
                    "apart": _plain(gap.apart),
                }
                for stage, gap in self.gaps.items()
            },
            "notes": list(self.notes),
        }

    def tables(self) -> list[Table]:
        """Return a table for each challenge."""
        found = [self.time_table()]
        if self.look_alikes is not None:
            found += [self.pairs_table(), self.alike_table()]
        return [*found, self.gap_table()]

    def time_table(self) -> Table:
        """Return accuracy by change of the frames, in per cent, and what each change costs."""
        effects = self.time.effects()
        rows = [
            (name, _percent(x), signed(effects[name]) if name in effects else "")
            for name, x in self.time.accuracies.items()
        ]
        share, low, high = (100 * x for x in self.time.static)
        notes = (
            f"{_whole(share)} % [{_whole(low)}, {_whole(high)}] of the margin is left when nothing moves",
            f"±: 95 % interval over {self.episodes} episodes; {chance([self.time.way])}",
            "cost: paired difference [95 % bootstrap interval]",
            *self.notes,
        )
        title = f"Time: {self.name}, {self.dataset} {self.request}"
        return Table(("the frames of queries", "accuracy (%)", "cost (points)"), rows, title, notes)

    def pairs_table(self) -> Table:
        """Return the pairs of classes that look most alike, and how well the first run tells them apart."""
        alike = self.look_alikes
        assert alike is not None
        first = next(iter(alike.by_pair))
        rows = [
            (pair.first, pair.second, f"{pair.cosine:.2f}", f"{100 * score:.1f}")
            for pair, score in zip(alike.pairs, alike.by_pair[first], strict=True)
        ]
        note = "cosine: of class means of the cache, less the mean of all classes"
        columns = ("class", "looks like", "cosine", f"{first} (%)")
        return Table(columns, rows, "Look-alikes: the pairs", [note], text=("looks like",))

    def alike_table(self) -> Table:
        """Return accuracy in two-way episodes of look-alikes and of any two classes, a row per head."""
        alike = self.look_alikes
        assert alike is not None
        rows = [
            (name, _percent(x), _percent(alike.any[name]), signed(_unpaired(alike.any[name], x)))
            for name, x in alike.alike.items()
        ]
        notes = (
            f"two-way episodes; {chance([2])}; less PIECE: that evidence set to zero, all else as it was",
            "any − alike: difference of means [95 % interval, not paired]",
        )
        columns = ("", "look-alikes (%)", "any two classes (%)", "any − alike (points)")
        return Table(columns, rows, "Look-alikes: two-way accuracy", notes)

    def gap_table(self) -> Table:
        """Return mean cosine distances to the same class and to others, by stage."""
        rows = []
        for stage, gap in self.gaps.items():
            rows.append((stage, "", "", ""))
            for name, (same, other) in gap.rows().items():
                rows.append((name, _number(same), _number(other), _number(other - same, sign=True)))
            rows.append(("centres of texts and videos", _number(gap.apart), "", ""))
        notes = (
            "cosine distance of mean frames and class texts, ± 95 % interval over episodes; a negative",
            "difference: the own class is further away than the others",
        )
        columns = ("", "same class", "other classes", "other − same")
        return Table(columns, rows, "Gap between texts and videos", [" ".join(notes)], block=5)


def diagnose(subjects: Sequence[Subject], *, episodes: int = 500, drops: bool = True) -> Diagnosis:
    """Measure the three challenges on ``episodes`` test episodes for each of them.

    The first of ``subjects`` is what it is about; look-alikes have a row for every one and, with ``drops``,
    for the first one less each kind of its evidence.
    """
    first = subjects[0]
    notes = []
    if first.config.shuffle_time:
        notes.append("this run has the frames of every clip in random order, supports too")
    drawn = first.draw(episodes)
    return Diagnosis(
        first.name,
        first.data.spec.dataset,
        drawn.spec.describe(),
        episodes,
        measure_time(first, episodes),
        measure_look_alikes(subjects, episodes, drops=drops),
        measure_gap(first, episodes),
        tuple(notes),
    )


def measure_time(subject: Subject, episodes: int) -> Time:
    """Score the same episodes with the queries' frames as they are, shuffled, reversed, or one repeated.

    And once with every clip, supports too, replaced by its mean frame.
    """
    drawn = subject.draw(episodes)
    generator = torch.Generator().manual_seed(0)

    def shuffle(episode: Any) -> Any:
        some = next(iter(episode.query.values()))
        order = torch.rand(some.shape[:3], generator=generator).argsort(-1).to(some.device).unsqueeze(-1)
        return episode.mapped(query=lambda x: x.gather(2, order.expand_as(x)))

    changes: dict[str, Change | None] = {
        AS_IT_IS: None,
        "shuffled": shuffle,
        "reversed": of_queries(lambda x: x.flip(2)),
        "the middle one repeated": of_queries(lambda x: x[:, :, x.shape[2] // 2, None].expand_as(x)),
        STILL: stilled,
    }
    accuracies, margins = {}, {}
    with subject.looking():
        for name, change in track(changes.items(), "time", len(changes), "changes"):
            right, margin = [], []
            for reading in subject.read(drawn, change):
                logits = reading.logits()
                right.append(reading.right(logits))
                margin.append(reading.margin(logits))
            accuracies[name], margins[name] = np.concatenate(right), np.concatenate(margin)
    return Time(drawn.spec.way, accuracies, _share(margins[STILL], margins[AS_IT_IS]))


def similar_pairs(subject: Subject, most: int = MOST_PAIRS) -> tuple[Pair, ...]:
    """Return the pairs of test classes whose means are most alike: half as many as classes, at most ``most``.

    A class's mean is over videos and frames of the last layer, less the mean of all classes.
    """
    pool = subject.bank.pool
    means = subject.features(np.arange(len(pool.ids))).mean(1)
    labels = torch.from_numpy(pool.labels).to(means.device)
    sums = means.new_zeros(len(pool.names), means.shape[-1]).index_add_(0, labels, means)
    centres = sums / torch.from_numpy(pool.sizes).to(means).clamp(min=1).unsqueeze(-1)
    unit = F.normalize(centres - centres.mean(0), dim=-1)
    cosines = (unit @ unit.mT).cpu().numpy()
    first, second = np.triu_indices(len(pool.names), 1)
    order = np.argsort(-cosines[first, second], kind="stable")[: max(1, min(most, len(pool.names) // 2))]
    return tuple(
        Pair(pool.names[first[i]], pool.names[second[i]], float(cosines[first[i], second[i]])) for i in order
    )


def measure_look_alikes(
    subjects: Sequence[Subject], episodes: int, *, drops: bool = True
) -> LookAlikes | None:
    """Score two-way episodes of the most similar pairs, and of any two classes.

    None where the test split has fewer than three classes, or too few videos.
    """
    first = subjects[0]
    pool = first.bank.pool
    shots = first.config.shots
    if len(pool.names) < 3 or int(pool.sizes.min()) < shots + 1:
        return None
    pairs = similar_pairs(first)
    each = max(1, episodes // len(pairs))
    at = {name: i for i, name in enumerate(pool.names)}
    drawn = [
        first.draw(each, way=2, among=np.isin(pool.labels, [at[pair.first], at[pair.second]]))
        for pair in pairs
    ]
    apart = first.draw(episodes, way=2)
    pieces = first.pieces() if drops else {}
    leave_out: dict[str, tuple[str, ...]] = {}
    if len(pieces) > 1:
        leave_out = {f"less {kind}": names for kind, names in pieces.items()}
    alike: dict[str, Floats] = {}
    any_two: dict[str, Floats] = {}
    by_pair: dict[str, tuple[float, ...]] = {}
    for subject in track(subjects, "look-alikes", len(subjects), "heads"):
        rows: dict[str, tuple[str, ...]] = {subject.name: (), **(leave_out if subject is first else {})}
        found: dict[str, list[Floats]] = {name: [] for name in rows}
        with subject.looking():
            for part in (*drawn, apart):
                readings = [
                    [reading.right(reading.logits(gone)) for gone in rows.values()]
                    for reading in subject.read(part)
                ]
                for name, batches in zip(rows, zip(*readings, strict=True), strict=True):
                    found[name].append(np.concatenate(batches))
        for name, parts in found.items():
            alike[name], any_two[name] = np.concatenate(parts[:-1]), parts[-1]
            by_pair[name] = tuple(float(x.mean()) for x in parts[:-1])
    return LookAlikes(pairs, alike, any_two, by_pair)


def measure_gap(subject: Subject, episodes: int) -> dict[str, Gap]:
    """Measure cosine distances between texts, support prototypes and queries, by stage."""
    found: dict[str, list[list[Floats]]] = {}
    with subject.looking():
        for reading in subject.read(subject.draw(episodes)):
            for name, stage in stages(reading).items():
                found.setdefault(name, []).append(_distances(stage, reading.labels))
    gaps = {}
    for name, parts in found.items():
        tp, tp_, tq, tq_, pq, pq_, apart = (np.concatenate(x) for x in zip(*parts, strict=True))
        gaps[name] = Gap((tp, tp_), (tq, tq_), (pq, pq_), apart)
    return gaps


def _distances(stage: Stage, labels: Tensor) -> list[Floats]:
    """Return the seven numbers of :class:`Gap` for each episode, [E] each."""
    text = F.normalize(stage.text.float(), dim=-1)  # [E, C, D]
    prototypes = F.normalize(stage.prototypes.float().mean(3), dim=-1)  # [E, Q, C, D]
    queries = F.normalize(stage.queries.float().mean(2), dim=-1)  # [E, Q, D]
    own = F.one_hot(labels, text.shape[1]).to(text)  # [E, Q, C]
    same = torch.eye(text.shape[1], device=text.device).expand(*prototypes.shape[:2], -1, -1)

    def split(cosine: Tensor, member: Tensor) -> list[Tensor]:
        distance = 1 - cosine
        return [
            ((distance * part).flatten(1).sum(1) / part.flatten(1).sum(1)) for part in (member, 1 - member)
        ]

    to_prototypes = torch.einsum("ecd,eqkd->eqck", text, prototypes)
    to_queries = torch.einsum("ecd,eqd->eqc", text, queries)
    between = torch.einsum("eqcd,eqd->eqc", prototypes, queries)
    videos = torch.cat([prototypes.flatten(1, 2).mean(1, keepdim=True), queries.mean(1, keepdim=True)], 1)
    apart = torch.linalg.vector_norm(text.mean(1) - videos.mean(1), dim=-1)
    found = [*split(to_prototypes, same), *split(to_queries, own), *split(between, own), apart]
    return [x.double().cpu().numpy() for x in found]


def _share(part: Floats, whole: Floats) -> tuple[float, float, float]:
    """Return the ratio of means with its 95 % bootstrap interval; NaN where ``whole`` is not positive."""
    if not whole.mean() > 0:
        return float("nan"), float("nan"), float("nan")
    over = np.array([bootstrap_means(x, seed=0) for x in (part, whole)])  # the same draws of episodes
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.nanquantile(over[0] / over[1], [0.025, 0.975])
    return float(part.mean() / whole.mean()), float(low), float(high)


def _unpaired(a: Floats, b: Floats) -> Difference:
    """Return the difference of two means with its normal 95 % interval."""
    one, other = estimate(a), estimate(b)
    half = float(np.hypot(one.half, other.half))
    mean = one.mean - other.mean
    return Difference(mean, mean - half, mean + half, min(one.n, other.n))


def _whole(percent: float) -> str:
    return "–" if np.isnan(percent) else str(round(percent))


def _plain(values: Floats) -> dict[str, float]:
    found: Estimate = estimate(values)
    return {"mean": found.mean, "interval95": found.half}


def _percent(values: Floats) -> str:
    found = estimate(values)
    return f"{100 * found.mean:.1f} ± {100 * found.half:.1f}"


def _number(values: Floats, *, sign: bool = False) -> str:
    found = estimate(values)
    return f"{found.mean:{'+' if sign else ''}.3f} ± {found.half:.3f}"
