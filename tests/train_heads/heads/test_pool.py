"""The pool: cosines beside a plain loop, tables beside cosines, fits beside a fine grid, and what each part is for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipspm.testing import check_head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.pool.fits import fit_factor, fit_weights, log_likelihood
from clipspm.train_heads.heads.pool.head import EvidencePool
from clipspm.train_heads.heads.pool.kinds import KINDS, Cosines, class_scores, drifting, spread
from clipspm.train_heads.heads.registry import build_head

E, S, Q, C, T, D = 2, 6, 3, 3, 4, 8
LABELS = torch.tensor([[2, 0, 1, 0, 2, 1], [1, 2, 2, 0, 0, 1]])
ONE_HOT = F.one_hot(LABELS, C).float()


def videos(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(E, S, T, D, generator=g), torch.randn(E, Q, T, D, generator=g)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def changed(kind: str, s: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What a kind sees of the clips ``x``, in plain words; ``s``: the supports."""
    if kind in ("look", "still"):
        return (x if kind == "look" else x.mean(1, keepdims=True)) - s.mean((0, 1))
    if kind == "drift":  # T = 4: weights 1, 2, 1, and the ends stand still
        padded = np.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
        x = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return x - x.mean(1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_a_plain_loop(kind: str) -> None:
    support, query = videos()
    scores, left = class_scores(KINDS[kind](support, query), ONE_HOT)
    for e in range(E):
        raw = support[e].double().numpy()
        s, q = (unit(changed(kind, raw, x.double().numpy())) for x in (support[e], query[e]))
        for c in range(C):
            own = [i for i in range(S) if LABELS[e, i] == c]
            for i in range(Q):
                expected = (unit(s[own].mean(0)) * q[i]).sum(-1).mean()
                assert float(scores[e, i, c]) == pytest.approx(expected, abs=1e-5)
            for i in range(S):
                others = [j for j in own if j != i]
                expected = (unit(s[others].mean(0)) * s[i]).sum(-1).mean()
                assert float(left[e, i, c]) == pytest.approx(expected, abs=1e-5)


def test_a_support_that_is_alone_in_its_class_scores_nothing_for_it() -> None:
    support, query = videos()
    labels = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 1, 1, 0]])
    queries, left = class_scores(KINDS["move"](support, query), F.one_hot(labels, C).float())
    alone = labels == 2
    assert (left[alone][:, 2] == 0).all()
    assert (left[~alone] != 0).all()
    assert queries.isfinite().all()


def test_drift_is_blind_to_jitter_and_keeps_what_is_slow() -> None:
    t = torch.arange(8.0)
    slow, jitter = t.unsqueeze(-1), (-1.0) ** t.unsqueeze(-1)
    assert drifting(jitter).norm() < 0.3 * jitter.norm()
    assert drifting(slow).norm() > 0.8 * (slow - slow.mean()).norm()
    assert torch.equal(drifting(torch.ones(8, 1)), torch.zeros(8, 1))


def test_spread_is_the_deviation_between_classes_and_never_nothing() -> None:
    """With two classes of one support each there is a single pair: its distance stands in."""
    support, query = videos()
    found = KINDS["move"](support, query)
    alike = found.supports.mean(1)[0].double()
    pairs = [float(alike[i, j]) for i in range(S) for j in range(i) if LABELS[0, i] != LABELS[0, j]]
    count, mean = len(pairs), float(np.mean(pairs))
    expected = math.sqrt((count * np.var(pairs) + (0.2 * (1 - mean)) ** 2) / (count + 1))
    assert float(spread(found, ONE_HOT)[0]) == pytest.approx(expected, rel=1e-5)
    two = Cosines(found.supports[:, :, :2, :2], found.queries[..., :2])
    assert (spread(two, torch.eye(2).expand(E, 2, 2)) > 0.01).all()
    same = Cosines(torch.ones(E, T, S, S), torch.ones(E, T, Q, S))
    assert spread(same, ONE_HOT).isfinite().all()


SHAPE = {"dim": D, "frames": T, "layer_dims": {"2": 5, "3:mean": 6}}


def episode(shots: int = 2, *, seed: int = 0) -> Episode:
    g = torch.Generator().manual_seed(seed)
    widths = {**SHAPE["layer_dims"], "final": D}
    labels = torch.arange(C).repeat(E, shots)
    support, query = (
        {n: torch.randn(E, k, T, d, generator=g) for n, d in widths.items()} for k in (C * shots, Q)
    )
    return Episode(support, query, labels, torch.randn(E, C, D, generator=g))


@pytest.mark.parametrize("shots", [1, 2, 4])
@pytest.mark.parametrize(
    "settings", [{}, {"text": False}, {"look": False, "still": False}, {"move": False, "drift": False}]
)
def test_tables_score_as_the_features_do(shots: int, settings: dict[str, bool]) -> None:
    """Features far from zero too, whose products lose digits."""
    head = build_head("evidence", **SHAPE, config=settings).eval()
    given = episode(shots).mapped(lambda x: x + 5, lambda x: x + 5)
    every = {
        n: torch.cat([given.support[n].flatten(0, 1), given.query[n].flatten(0, 1)]) for n in head.layers
    }
    scorer = head.recall(every, torch.empty(0))
    assert scorer is not None
    supports, queries = torch.arange(E * (C * shots + Q)).split([E * C * shots, E * Q])
    without = Episode({}, {}, given.support_labels, given.text)
    found = scorer(without, supports.view(E, -1), queries.view(E, -1))
    torch.testing.assert_close(found, head.run(given).logits, rtol=1e-4, atol=1e-4)


def test_tables_that_would_not_fit_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipspm.train_heads.heads.pool.tables.MOST", 1000)
    head = build_head("evidence", **SHAPE).eval()
    assert head.recall({n: torch.zeros(9, T, d) for n, d in head.layer_dims.items()}, torch.empty(0)) is None


def planted(shots: int, useful: str, seed: int) -> tuple[Episode, torch.Tensor]:
    """Many episodes in which only the look of one layer tells classes apart."""
    g, n = torch.Generator().manual_seed(seed), 200
    classes = torch.arange(C)
    labels, truth = classes.repeat(n, shots), torch.randint(C, (n, Q), generator=g)
    parts = []
    centre = torch.randn(n, C, 1, D, generator=g)
    for of in (labels, truth):
        seen = {name: torch.randn(*of.shape, T, D, generator=g) for name in ("2", "final")}
        seen[useful] += 2 * centre.gather(1, of[..., None, None].expand(-1, -1, 1, D))
        parts.append(seen)
    return Episode(parts[0], parts[1], labels, torch.randn(n, C, D, generator=g)), truth


def accuracy(head: EvidencePool, given: Episode, truth: torch.Tensor) -> float:
    return float((head.run(given).logits.argmax(-1) == truth).double().mean())


@pytest.mark.parametrize("useful", ["2", "final"])
def test_supports_weigh_the_evidence_that_tells_them_apart(useful: str) -> None:
    head = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}).eval()
    given, truth = planted(4, useful, 0)
    known = head.scores(given).kept
    weights = head._weights(given, known.familiar, known.left_out)
    own = head.names.index(f"look/{useful}")
    assert (weights.argmax(1) == own).double().mean() > 0.95
    equal = (head.factors[0] * head.equal).double()
    assert (weights[:, own] > equal[own]).double().mean() > 0.95
    alone = build_head(
        "evidence",
        dim=D,
        frames=T,
        layer_dims={"2": D},
        config={"still": False, "move": False, "drift": False},
    )
    assert accuracy(head, given, truth) > 0.85 * accuracy(alone.eval(), given, truth)


def test_clips_of_one_recording_in_all_classes_do_not_make_the_evidence_small() -> None:
    """A support that is left out then looks like other classes, whose clips of its recording are there."""
    head = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}).eval()
    given, _ = planted(3, "2", 0)
    recording = torch.randn(len(given.text), 3, 1, D).repeat_interleave(C, 1)
    given = given.mapped(lambda x: x + 3 * recording, lambda x: x)
    known = head.scores(given).kept
    alone = (known.left_out.argmax(-1) == given.support_labels.unsqueeze(1)).double().mean()
    assert alone < 1 / C
    weights = head._weights(given, known.familiar, known.left_out)
    assert (weights.sum(1) > 0.99 * float(head.factors[2])).all()


def test_calibration_on_training_classes_helps_where_the_same_evidence_tells() -> None:
    head = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}).eval()
    given, truth = planted(1, "2", 0)
    before = accuracy(head, given, truth)
    head.calibrate(1, [planted(1, "2", 1)])
    assert accuracy(head, given, truth) > before + 0.02
    assert head.fitted[0].argmax() == head.names.index("look/2")
    other = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}).eval()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.run(given).logits, head.run(given).logits)


@pytest.mark.parametrize("shots", [1, 3])
def test_supports_of_another_data_set_are_weighed_as_if_nothing_had_been_measured(shots: int) -> None:
    """Only the factor of equal weights and the temperature remain of what training classes said."""
    head = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}).eval()
    given, _ = planted(shots, "2", 0)
    head.calibrate(shots, [planted(shots, "2", 1)])
    assert (head.scores(given).kept.familiar == 1).double().mean() > 0.95
    moved = given.mapped(lambda x: x + 3.0, lambda x: x + 3.0)
    assert (head.scores(moved).kept.familiar == 0).all()
    plain = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}).eval()
    plain.load_state_dict(head.state_dict())
    plain.fitted.copy_(plain.factors.unsqueeze(1) * plain.equal)
    torch.testing.assert_close(head.run(moved).logits, plain.run(moved).logits, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(head.run(given).logits, plain.run(given).logits, atol=1e-2)


def test_classes_that_nothing_confuses_leave_the_factors_small() -> None:
    """Where every label is right any larger factor is likelier still."""
    given, truth = planted(1, "2", 1)
    shift = torch.zeros(C, D)
    shift[torch.arange(C), torch.arange(C)] = 1000.0
    apart = Episode(
        {n: x + shift[given.support_labels][..., None, :] for n, x in given.support.items()},
        {n: x + shift[truth][..., None, :] for n, x in given.query.items()},
        given.support_labels,
        given.text,
    )
    head = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}).eval()
    head.calibrate(1, [(apart, truth)])
    assert accuracy(head, apart, truth) == 1
    assert 0 < float(head.factors[0]) < 100
    assert float(head.fitted[0].sum()) < 100
    assert float(head.told[0]) < 100


def test_evidence_that_says_nothing_leaves_finite_weights() -> None:
    given, truth = planted(1, "2", 1)
    head = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}).eval()
    head.calibrate(1, [(given, (truth + 1) % C)])
    assert float(head.factors[0]) > 0
    assert all(buffer.isfinite().all() for buffer in head.buffers())
    assert head.run(planted(3, "2", 2)[0]).logits.isfinite().all()


def test_an_episode_with_a_lone_support_changes_none_beside_it() -> None:
    head = build_head("evidence", **SHAPE).eval()
    given = episode(2)
    mixed = replace(given, support_labels=torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 1]]))
    torch.testing.assert_close(head.run(mixed).logits[0], head.run(given).logits[0])


def test_weights_and_scales_are_exact_whatever_the_precision() -> None:
    head = build_head("evidence", **SHAPE).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = head.run(episode(3)).logits
    assert torch.equal(found, head.run(episode(3)).logits)


@pytest.mark.parametrize("shots", [1, 3])
def test_texts_that_tell_are_used_and_those_that_mislead_are_not(shots: int) -> None:
    given, truth = planted(shots, "final", 0)
    head = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}).eval()
    silent = build_head("evidence", dim=D, frames=T, layer_dims={"2": D}, config={"text": False}).eval()
    means = torch.stack(
        [
            given.support["final"][given.support_labels == c].view(200, -1, T, D).mean((1, 2))
            for c in range(C)
        ],
        1,
    )
    said = accuracy(head, Episode(given.support, given.query, given.support_labels, means), truth)
    lied = accuracy(head, Episode(given.support, given.query, given.support_labels, means.roll(1, 1)), truth)
    nothing = accuracy(silent, given, truth)
    assert said > nothing
    assert lied > nothing - 0.02


def test_weights_are_the_best_of_a_grid() -> None:
    g = torch.Generator().manual_seed(1)
    scores = torch.randn(E, 2, S, C, generator=g).double()
    scores[:, 0] += 1.5 * ONE_HOT  # the first knows the labels
    prior, deviation = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])
    found = fit_weights(scores, LABELS, prior, deviation)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        logits = torch.einsum("k,ekvc->evc", weights.double(), scores)
        pull = ((weights - prior) / deviation).square().sum() / 2
        return pull - log_likelihood(logits, LABELS)

    best = torch.stack([loss(found[e])[e] for e in range(E)])
    grid = torch.cartesian_prod(torch.linspace(0, 3, 61), torch.linspace(0, 3, 61))
    every = torch.stack([loss(weights) for weights in grid])
    assert (best <= every.min(0).values + 1e-9).all()
    assert (found[:, 0] > found[:, 1]).all() and (found >= 0).all()


def test_weights_stay_with_the_prior_where_nothing_is_known() -> None:
    prior = torch.tensor([0.2, 0.8])
    found = fit_weights(torch.zeros(E, 2, S, C), LABELS, prior, prior / 2)
    torch.testing.assert_close(found, prior.double().expand(E, -1))


@pytest.mark.parametrize("offset", [None, 0.5])
def test_a_factor_is_the_best_of_a_grid(offset: float | None) -> None:
    g = torch.Generator().manual_seed(2)
    scores = torch.randn(E, S, C, generator=g).double() + ONE_HOT
    beside = None if offset is None else offset * torch.randn(E, S, C, generator=g).double()
    found = fit_factor(scores, LABELS, beside, 0.7)

    def loss(factor: torch.Tensor) -> torch.Tensor:
        logits = factor.view(-1, 1, 1) * scores + (0 if beside is None else beside)
        return 0.7 * factor - log_likelihood(logits, LABELS)

    every = torch.stack([loss(torch.full((E,), x).double()) for x in np.linspace(0, 5, 501).tolist()])
    assert (loss(found) <= every.min(0).values + 1e-9).all()
    assert (found > 0).all()


def test_scores_that_mislead_get_no_factor() -> None:
    assert (fit_factor(-5 * ONE_HOT, LABELS, None, 0.5) == 0).all()
    sharp = fit_factor(100 * ONE_HOT, LABELS, None, 0.5)
    assert torch.isfinite(sharp).all() and (sharp > 0).all() and math.isfinite(float(sharp.sum()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"motion_weight": 1.0, "motion_taps": 3, "learn_logit_scale": True},
        {"padm": False, "text": False},
        {"look": False, "still": False, "move": False, "drift": False},
        {"without": ("final",), "shallow_layer": "3"},
    ],
)
def test_clip_spm_on_top_of_the_pool_keeps_the_contract(settings: dict[str, object]) -> None:
    small = {"pool": True, "heads": 1, "head_width": 8, "ffn_width": 16}
    check_head("clip-spm", settings={**small, **settings}, layer_dims={"3": 8, "5:mean": 6})
