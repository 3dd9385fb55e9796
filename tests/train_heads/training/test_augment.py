"""Virtual classes: a plain loop beside the batched mixing, and what it must leave alone."""

import torch

from clipspm.train_heads.evaluation.predict import EpisodeBatch
from clipspm.train_heads.training.augment import mix_motion

E, C, K, Q, T, D = 3, 4, 2, 3, 5, 6


def batch(seed: int = 0) -> EpisodeBatch:
    g = torch.Generator().manual_seed(seed)

    def labels(n: int) -> torch.Tensor:
        return torch.arange(C).repeat_interleave(n).expand(E, -1)

    return EpisodeBatch(
        support=torch.randn(E, C * K, T, D, generator=g),
        support_labels=labels(K),
        query=torch.randn(E, C * Q, T, D, generator=g),
        query_labels=labels(Q),
        text=torch.randn(E, C, D, generator=g),
        support_shallow=None,
        query_shallow=torch.randn(E, C * Q, T, 2, generator=g),
        base=None,
    )


def test_a_plain_loop_gives_the_same() -> None:
    plain, g = batch(), torch.Generator().manual_seed(7)
    mixed = mix_motion(plain, 0.8, torch.Generator().manual_seed(7))
    steps = torch.randint(1, C, (E, 1), generator=g)
    share = (torch.rand(E, C, generator=g) * 2 - 1) * 0.8
    assert share.abs().max() > 0.3
    for videos, found, n in (
        (plain.support, mixed.support, K),
        (plain.query, mixed.query, Q),
        (plain.query_shallow, mixed.query_shallow, Q),
    ):
        assert videos is not None
        assert found is not None
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
    torch.testing.assert_close(mixed.support.mean(2), plain.support.mean(2), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mixed.query.mean(2), plain.query.mean(2), atol=1e-6, rtol=1e-5)
    assert mixed.text is plain.text
    assert mixed.query_labels is plain.query_labels
    assert not torch.allclose(mixed.support, plain.support)


def test_no_strength_changes_nothing() -> None:
    plain = batch()
    torch.testing.assert_close(mix_motion(plain, 0.0, torch.Generator()).query, plain.query)
