"""CLIP-SPM against tensors recorded from the reference implementation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clipspm.train_heads.heads import CLIPSPM
from clipspm.train_heads.heads.clipspm.reference import to_reference

FILES = ("hmdb51_5way_1shot", "kinetics_5way_5shot")


class Golden:
    """One recorded file: its tensors, its weights and what they were recorded with."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as f:
            self.meta = f.metadata()
            self.tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        self.weights = {
            k.removeprefix("weight/"): v for k, v in self.tensors.items() if k.startswith("weight/")
        }

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def call(self) -> dict[str, Any]:
        return {
            "support": self["support"],
            "support_labels": self["support_labels"],
            "query": self["query"],
            "text": self["text"][self["episode_classes"]],
        }

    def head(self, **overrides: Any) -> CLIPSPM:
        return CLIPSPM.from_reference(self.weights, preset=self.meta["preset"], **overrides)


@pytest.fixture(scope="module", params=FILES)
def golden(request: pytest.FixtureRequest, shared_dir: Path) -> Golden:
    return Golden(shared_dir / "golden" / f"{request.param}.safetensors")


def assert_recorded(found: Tensor, recorded: Tensor) -> None:
    """Absolute 1e-4 or relative 1e-5, whichever is larger, element by element."""
    gap = (found.detach().reshape(recorded.shape) - recorded).abs()
    allowed = torch.maximum(torch.full_like(recorded, 1e-4), 1e-5 * recorded.abs())
    assert (gap <= allowed).all(), f"largest gap {gap.max()}"


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
