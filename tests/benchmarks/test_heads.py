"""The plain reference that the speed of the heads is measured against computes what was recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.reference_heads import ReferenceHead


@pytest.fixture(scope="module", params=["hmdb51_5way_1shot", "kinetics_5way_5shot"])
def recorded(request: pytest.FixtureRequest, shared_dir: Path) -> dict[str, Any]:
    with safe_open(shared_dir / "golden" / f"{request.param}.safetensors", "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()} | {"meta": file.metadata()}  # noqa: SIM118


def reference(recorded: dict[str, Any]) -> ReferenceHead:
    meta = recorded["meta"]
    params = json.loads(meta["params"])
    head = ReferenceHead(
        int(meta["dim"]),
        rho_v=params["mid_dim_vision"],
        rho_t=params["mid_dim_text"],
        slope=params["negative_slope"],
        alpha=params["alpha"],
        dropout=0.0,
        ffn_dropout=0.0,
    )
    shapes = {k: v.shape for k, v in head.state_dict().items()}
    head.load_state_dict({k: recorded[f"weight/{k}"].view(shape) for k, shape in shapes.items()})
    return head


def arguments(recorded: dict[str, Any]) -> tuple[Tensor, ...]:
    text = recorded["text"][recorded["episode_classes"]]
    labels = recorded["support_labels"].long(), recorded["query_labels"].long()
    return recorded["support"], labels[0], recorded["query"], text, labels[1]


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach().reshape(expected.shape), expected, rtol=1e-5, atol=1e-4)


def test_logits_of_both_protocols_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    head, call = reference(recorded).eval(), arguments(recorded)
    with torch.no_grad():
        near(head(*call)[0], recorded["logits"])
        near(head.alone(*call), recorded["logits_inductive"])


def test_loss_and_gradients_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    head, call = reference(recorded).train(), arguments(recorded)
    logits, motion = head(*call)
    near(motion, recorded["hsmr_consistency"])
    loss = head.loss(logits, motion, call[-1])
    near(loss, recorded["loss"])
    loss.backward()
    norms = {n: p.grad.norm() for n, p in head.named_parameters() if p.grad is not None}
    wanted = {k.removeprefix("grad_norm/"): v for k, v in recorded.items() if k.startswith("grad_norm/")}
    assert norms.keys() == wanted.keys()
    for name, norm in norms.items():
        near(norm, wanted[name])
