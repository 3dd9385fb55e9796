"""CLIP-SPM against tensors recorded from the reference implementation."""

import pytest
import torch

from clipspm.train_heads.heads.clipspm.reference import to_reference
from tests.support.golden import Golden, assert_recorded


def test_every_intermediate_tensor_is_the_recorded_one(golden: Golden) -> None:
    head = golden.head().eval()
    t = head.trace(**golden.call(), protocol="transductive", query_labels=golden["query_labels"])
    s = len(golden["support"])
    assert t.shallow is not None
    assert t.deep is not None
    assert t.padm is not None
    found = {
        "hsmr_shallow_support": t.shallow[:, :s],
        "hsmr_shallow_query": t.shallow[:, s:],
        "hsmr_deep_support": t.deep[:, :s],
        "hsmr_deep_query": t.deep[:, s:],
        "hsmr_consistency": t.output.losses["motion"],
        "spm_support": t.support,
        "spm_query": t.query,
        "spm_support_token": t.support_token,
        "spm_query_token": t.query_token,
        "spm_distance": t.d1,
        "padm_support": t.padm.support,
        "padm_query": t.padm.query,
        "padm_class_token": t.padm.class_token,
        "padm_anchor": t.padm.anchor,
        "logits": t.output.logits,
    }
    for key, tensor in found.items():
        assert tensor is not None, key
        assert_recorded(tensor, golden[key])


def test_logits_of_both_protocols(golden: Golden) -> None:
    head = golden.head().eval()
    with torch.no_grad():
        assert_recorded(head(**golden.call(), protocol="transductive").logits, golden["logits"])
        assert_recorded(head(**golden.call(), protocol="inductive").logits, golden["logits_inductive"])


@pytest.mark.parametrize("training", [False, True])
def test_loss_and_the_norm_of_every_gradient(golden: Golden, training: bool) -> None:
    head = golden.head(dropout=0.0, ffn_dropout=0.0).train(training)
    labels = golden["query_labels"]
    loss = head.episode_loss(head(**golden.call(), protocol="transductive", query_labels=labels), labels)
    assert_recorded(loss, golden["loss"][0])
    loss.backward()
    gradients = {n: p.grad for n, p in head.named_parameters() if p.grad is not None}
    found = to_reference(head, gradients)
    recorded = {
        k.removeprefix("grad_norm/"): v for k, v in golden.tensors.items() if k.startswith("grad_norm/")
    }
    assert found.keys() == recorded.keys()
    for name, norm in recorded.items():
        assert_recorded(found[name].norm(), norm)


def test_consistency_losses_of_the_paper(golden: Golden) -> None:
    head = golden.head(consistency=True).eval()
    losses = head(**golden.call(), query_labels=golden["query_labels"]).losses
    assert_recorded(losses["text"], golden["text_consistency"])
    assert_recorded(losses["consistency"], golden["fusion_consistency"])
    assert_recorded(losses["motion"], golden["hsmr_consistency"])
