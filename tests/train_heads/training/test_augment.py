"""Virtual classes: a plain loop beside the batched mixing, and what it must leave alone."""

import torch

from clipspm.train_heads.evaluation.predict import Batch
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.training.augment import mix_motion

E, C, K, Q, T, D = 3, 4, 2, 3, 5, 6


def batch(seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def labels(n: int) -> torch.Tensor:
        return torch.arange(C).repeat_interleave(n).expand(E, -1)

    def features(n: int) -> dict[str, torch.Tensor]:
        return {layer: torch.randn(E, n, T, width, generator=g) for layer, width in (("final", D), ("3", 2))}

    episode = Episode(features(C * K), features(C * Q), labels(K), torch.randn(E, C, D, generator=g))
    return Batch(episode, labels(Q))


def test_a_plain_loop_gives_the_same() -> None:
    plain, g = batch(), torch.Generator().manual_seed(7)
    mixed = mix_motion(plain, 0.8, torch.Generator().manual_seed(7))
    steps = torch.randint(1, C, (E, 1), generator=g)
    share = (torch.rand(E, C, generator=g) * 2 - 1) * 0.8
    assert share.abs().max() > 0.3
    for videos, found, n in (
        (plain.episode.support["final"], mixed.episode.support["final"], K),
        (plain.episode.query["final"], mixed.episode.query["final"], Q),
        (plain.episode.query["3"], mixed.episode.query["3"], Q),
    ):
        for e in range(E):
            for c in range(C):
                partner = int(c + steps[e, 0]) % C
                assert partner != c
                for i in range(n):
                    other = videos[e, partner * n + i]
                    expected = videos[e, c * n + i] + share[e, c] * (other - other.mean(0))
                    torch.testing.assert_close(found[e, c * n + i], expected)


def test_mean_frames_labels_and_texts_stay() -> None:
    plain = batch()
    mixed = mix_motion(plain, 1.0, torch.Generator().manual_seed(0))
    before, after = plain.episode, mixed.episode
    for now, then in ((after.support, before.support), (after.query, before.query)):
        torch.testing.assert_close(now["final"].mean(2), then["final"].mean(2), atol=1e-6, rtol=1e-5)
    assert after.text is before.text
    assert mixed.query_labels is plain.query_labels
    assert not torch.allclose(after.support["final"], before.support["final"])


def test_no_strength_changes_nothing() -> None:
    plain = batch()
    found = mix_motion(plain, 0.0, torch.Generator()).episode.query["final"]
    torch.testing.assert_close(found, plain.episode.query["final"])
