"""CLIP-SPM against tensors recorded from the reference implementation."""

import pytest
import torch

from clipspm.train_heads.heads import Episode
from clipspm.train_heads.heads.clipspm.reference import to_reference
from tests.support.golden import Golden, assert_recorded


def test_every_intermediate_tensor_is_the_recorded_one(golden: Golden) -> None:
    head = golden.head().eval()
    call = golden.call()
    output = head(**call, protocol="transductive", query_labels=golden["query_labels"])
    layers = {name: {"final": call[name]} for name in ("support", "query")}
    labels, text = call["support_labels"], call["text"]
    episode = Episode(**layers, support_labels=labels, text=text, protocol="transductive").batched()
    evidence = head.scores(episode)
    made, s = evidence.kept, len(golden["support"])
    shallow = head.shallow_motion(episode, episode.videos())
    deep = head.motion(head.refined_motion(episode, episode.videos()).frames)
    found = {
        "hsmr_shallow_support": shallow[:, :s],
        "hsmr_shallow_query": shallow[:, s:],
        "hsmr_deep_support": deep[:, :s],
        "hsmr_deep_query": deep[:, s:],
        "hsmr_consistency": output.losses["motion"],
        "spm_support": made.support,
        "spm_query": made.query,
        "spm_support_token": made.fused.token[:, :s],
        "spm_query_token": made.fused.token[:, s:],
        "spm_distance": -evidence["prototype"],
        "padm_support": made.refined.support,
        "padm_query": made.refined.query,
        "padm_class_token": made.refined.class_token,
        "padm_anchor": made.refined.anchor,
        "logits": output.logits,
    }
    for key, tensor in found.items():
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
    found = to_reference(gradients)
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
