"""Attention by pieces equals the block's own attention over the tokens that they make up."""

import pytest
import torch

from clipspm.train_heads.heads.clipspm import pieces
from clipspm.train_heads.heads.clipspm.fusion import SemanticFusion
from clipspm.train_heads.heads.parts.attention import Block

D = 12


def block() -> Block:
    torch.manual_seed(0)
    made = Block(D, heads=3, head_width=5, ffn_width=7, dropout=0.0, ffn_dropout=0.0).double()
    with torch.no_grad():
        for p in made.parameters():  # the norm's weight and bias too
            p.add_(0.3 * torch.randn_like(p))
    return made


@pytest.mark.parametrize("lengths", [(4,), (3, 2)])
def test_output_and_gradients_are_those_of_the_block(lengths: tuple[int, ...]) -> None:
    plain, n, p = block(), sum(lengths), 6
    vectors = torch.randn(2, p, D, dtype=torch.float64, requires_grad=True)
    members = torch.rand(2, n, p, dtype=torch.float64)

    def by_block() -> torch.Tensor:
        return torch.cat(plain(*(members @ vectors).split(lengths, dim=1)), dim=1)

    def by_pieces() -> torch.Tensor:
        tokens = members @ vectors
        weights = pieces.inverse_deviation(plain, tokens) * members
        known = pieces.compare(plain, pieces.project(plain, vectors))
        mask = pieces.group_mask(*lengths, like=vectors)
        (done,) = plain(tokens, attention=pieces.attend(plain, known, weights, mask))
        return done

    found, expected = by_pieces(), by_block()
    torch.testing.assert_close(found, expected)
    leaves = [vectors, *plain.parameters()]
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_several_prompts_for_one_video_are_several_fusions() -> None:
    fusion = SemanticFusion(D, block(), rho_v=0.5, rho_t=1.5, slope=0.01, alpha=0.3).double()
    gated = torch.randn(2, 3, 4, D, dtype=torch.float64)
    prompts = torch.randn(3, 2, 3, D, dtype=torch.float64)
    found = fusion.train()(*((gated, prompt) for prompt in prompts))
    for prompt, (frames, token) in zip(prompts, found, strict=True):
        ((expected_frames, expected_token),) = fusion((gated, prompt))
        torch.testing.assert_close(frames, expected_frames)
        torch.testing.assert_close(token, expected_token)


def test_narrow_heads_and_half_precision_keep_the_plain_form() -> None:
    x = torch.zeros(1)
    assert pieces.worth_it(Block(D, heads=1, head_width=3), x)
    assert not pieces.worth_it(Block(D, heads=1, head_width=2), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pieces.worth_it(Block(D, heads=1, head_width=3), x)
