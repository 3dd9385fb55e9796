"""The classifier: scikit-learn's own checks, the head beneath it, and what it does with labels and layers."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from clipspm import FewShotClassifier
from clipspm.recognise.unknown import find_threshold, standing_out
from clipspm.train_heads.heads.registry import build_head

C, SHOTS, T, WIDTHS = 4, 3, 5, {"8:mean": 6, "final": 8}

#: scikit-learn's checks that are not passed, and why: none
EXPECTED_FAILURES: dict[str, str] = {}


@parametrize_with_checks(
    [FewShotClassifier(), FewShotClassifier("frame-cosine")],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_it_is_an_estimator_as_scikit_learn_has_them(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


def clips(shots: int = SHOTS, queries: int = 5, noise: float = 0.8, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Features of clips around a trajectory of each class: supports, labels, queries, labels."""
    rng = np.random.default_rng(seed)
    paths = rng.normal(size=(C, T, sum(WIDTHS.values())))
    names = np.array(["walk", "sit", "wave", "clap"])
    labels, asked = np.repeat(np.arange(C), shots), np.repeat(np.arange(C), queries)
    supports, others = (
        (paths[rows] + noise * rng.normal(size=(len(rows), *paths.shape[1:]))).astype(np.float32)
        for rows in (labels, asked)
    )
    return supports, names[labels], others, names[asked]


def test_it_scores_as_the_head_does() -> None:
    x, y, queries, truth = clips()
    found = FewShotClassifier(layers=WIDTHS).fit(x, y)
    head = build_head(
        "evidence",
        dim=WIDTHS["final"],
        frames=T,
        layer_dims={"8:mean": WIDTHS["8:mean"]},
        config={"text": False},
    ).eval()
    cut = [dict(zip(WIDTHS, torch.from_numpy(part).split([6, 8], -1), strict=True)) for part in (x, queries)]
    rows = torch.tensor([sorted(set(y)).index(label) for label in y])
    with torch.no_grad():
        logits = head(cut[0], rows, cut[1], torch.zeros(C, 8)).logits.numpy()
    np.testing.assert_allclose(found.logits(queries), logits, atol=1e-5)
    assert list(found.classes_) == sorted(set(y))
    assert found.score(queries, truth) > 0.9
    np.testing.assert_allclose(found.predict_proba(queries).sum(1), 1)
    assert (found.classes_[found.predict_proba(queries).argmax(1)] == found.predict(queries)).all()


def test_the_evidence_adds_up_to_the_logits() -> None:
    x, y, queries, _ = clips()
    found = FewShotClassifier(layers=WIDTHS, texts=np.eye(C, WIDTHS["final"])).fit(x, y)
    said = found.explain(queries)
    assert {"look/8:mean", "move/final", "text"} <= said.keys()
    np.testing.assert_allclose(sum(said.values()), found.logits(queries), atol=1e-4)


def test_the_temperature_makes_likely_what_is_left_out() -> None:
    sure, unsure = (
        FewShotClassifier("frame-cosine", layers=WIDTHS).fit(*clips(noise=noise)[:2]) for noise in (0.3, 4.0)
    )
    assert sure.temperature_ < unsure.temperature_
    few = clips(shots=1)
    assert FewShotClassifier("frame-cosine", layers=WIDTHS).fit(*few[:2]).temperature_ == 1
    assert FewShotClassifier(layers=WIDTHS, temperature=3.0).fit(*clips()[:2]).temperature_ == 3
    assert FewShotClassifier(layers=WIDTHS).fit(*clips()[:2]).temperature_ == 1


@pytest.mark.parametrize("head", ["evidence", "otam"])
def test_leaving_out_all_at_once_is_leaving_out_one_by_one(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, _, _ = clips()
    found = FewShotClassifier(head, layers=WIDTHS).fit(x, y)
    logits, labels = found.left_out()
    every = np.arange(len(x))
    for row, (own, label) in enumerate(zip(logits, labels, strict=True)):
        rest = FewShotClassifier(head, layers=WIDTHS, temperature=1.0).fit(x[every != row], y[every != row])
        np.testing.assert_allclose(rest.logits(x[row : row + 1])[0], own, rtol=1e-4, atol=1e-4)
        assert found.classes_[label] == y[row]
    monkeypatch.setattr("clipspm.recognise.classifier._MOST_NUMBERS", 1)
    np.testing.assert_allclose(found.left_out()[0], logits, rtol=1e-4, atol=1e-4)


def test_a_support_is_left_out_of_its_own_class_only() -> None:
    x, y, _, _ = clips(noise=0.1)
    found = FewShotClassifier(layers=WIDTHS).fit(x, y)
    logits, labels = found.left_out()
    assert (logits.argmax(1) == labels).all()
    one = np.array([0, 3, 6, 9, 1])  # one of each class, and a second of the first
    few = FewShotClassifier(layers=WIDTHS).fit(x[one], y[one])
    assert len(few.left_out()[0]) == 2
    assert few.temperature_ == 1


def test_clips_of_other_classes_stand_out_less() -> None:
    x, y, queries, truth = clips(shots=4, queries=20)
    known = y != "wave"
    found = FewShotClassifier(layers=WIDTHS).fit(x[known], y[known])
    threshold = found.find_threshold()
    assert threshold is not None
    out = standing_out(found.logits(queries)) < threshold.value
    assert out[truth == "wave"].mean() > 0.8 > 0.3 > out[truth != "wave"].mean()
    assert threshold.misses < 0.3 and threshold.false_alarms < 0.4


@pytest.mark.parametrize("keep", [("walk", "sit"), None])
def test_without_enough_clips_nothing_is_called_unknown(keep: tuple[str, ...] | None) -> None:
    x, y, _, _ = clips(shots=3 if keep else 1)
    rows = np.isin(y, keep) if keep else np.full(len(y), True)
    assert FewShotClassifier(layers=WIDTHS).fit(x[rows], y[rows]).find_threshold() is None


def test_rates_are_those_of_classes_that_did_not_set_the_threshold() -> None:
    """The third class's clips stand out so little that its own score would have set the threshold lower."""
    known, classes = np.array([5.0, 6, 5, 6, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    other = np.array([0.0, 0, 0, 0, 5.5, 0])
    found = find_threshold(known, classes, other, classes)
    assert found.false_alarms == pytest.approx(1 / 3)  # both of the third class, none of the others
    assert found.misses == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": {"8:mean": 6}}, "needed 'final' among them"),
        ({"layers": {"8:mean": 6, "final": 9}}, "and the sum 14"),
        ({"layers": WIDTHS, "texts": np.zeros((3, 8))}, r"needed \(4, 8\), a row for each class"),
        ({"layers": WIDTHS, "head": "evidenc"}, "unknown head 'evidenc'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShotClassifier(**settings).fit(*clips()[:2])  # type: ignore[arg-type]


def test_other_shapes_are_refused() -> None:
    x, y, queries, _ = clips()
    found = FewShotClassifier(layers=WIDTHS).fit(x, y)
    with pytest.raises(ValueError, match="fitted to"):
        found.predict(queries[..., :-1])
    with pytest.raises(ValueError, match=r"needed \[N, T, D\] or \[N, D\]"):
        FewShotClassifier().fit(x[..., None], y)


def test_it_is_used_as_estimators_are() -> None:
    x, y, _, _ = clips(shots=6)
    assert cross_val_score(FewShotClassifier(layers=WIDTHS), x, y, cv=3).mean() > 0.9
