"""The peers of CLIP-SPM: recorded tensors, slow references, and the promises that every head keeps."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from clipspm.testing import check_head
from clipspm.train_heads.heads import HEADS, BaseClasses, Head, build_head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.peers.clip_fsar import CLIPFSAR
from clipspm.train_heads.heads.peers.cpm import CPM, best_assignment
from clipspm.train_heads.heads.peers.trx import TRX

E, C, T, D = 2, 3, 4, 16


def build(name: str, **config: Any) -> Head:
    torch.manual_seed(0)
    return build_head(name, dim=D, frames=T, config=config)


def episode(queries: int = 6, seed: int = 1) -> dict[str, Tensor]:
    """Two episodes with unequal supports per class, in shuffled order."""
    g = torch.Generator().manual_seed(seed)
    return {
        "support": torch.randn(E, 6, T, D, generator=g),
        "support_labels": torch.tensor([[2, 0, 1, 0, 0, 1], [1, 2, 2, 0, 2, 2]]),
        "query": torch.randn(E, queries, T, D, generator=g),
        "text": torch.randn(E, C, D, generator=g),
    }


def base_classes(queries: int = 6) -> BaseClasses:
    g = torch.Generator().manual_seed(5)
    return BaseClasses(
        torch.randn(9, D, generator=g),
        torch.randint(9, (E, 6), generator=g),
        torch.randint(9, (E, queries), generator=g),
    )


def recorded(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    weights = {k.removeprefix("weight/"): v for k, v in tensors.items() if k.startswith("weight/")}
    return tensors, weights


def assert_recorded(found: Tensor, expected: Tensor) -> None:
    allowed = torch.maximum(torch.full_like(expected, 1e-4), 1e-5 * expected.abs())
    gap = (found.detach() - expected).abs()
    assert (gap <= allowed).all(), f"largest gap {gap.max()}"


def test_clip_fsar_equals_the_recorded_tensors(shared_dir: Path) -> None:
    golden, weights = recorded(shared_dir / "golden" / "clip_fsar_5way_3shot.safetensors")
    head = CLIPFSAR(dim=32, frames=8).eval()
    layer = "context2.layers.0."
    head.load_state_dict(
        {
            "scale": weights["scale"],
            "block.norm.weight": weights[layer + "0.norm.weight"],
            "block.norm.bias": weights[layer + "0.norm.bias"],
            "block.qkv.weight": torch.cat([weights[f"{layer}0.fn.to_{x}.weight"] for x in "qkv"]),
            "block.out.weight": weights[layer + "0.fn.to_out.0.weight"],
            "block.out.bias": weights[layer + "0.fn.to_out.0.bias"],
            "block.ffn.expand.weight": weights[layer + "1.net.0.weight"],
            "block.ffn.expand.bias": weights[layer + "1.net.0.bias"],
            "block.ffn.contract.weight": weights[layer + "1.net.3.weight"],
            "block.ffn.contract.bias": weights[layer + "1.net.3.bias"],
        }
    )
    text = golden["text"][golden["episode_classes"]]
    assert_recorded(
        head(golden["support"], golden["support_labels"], golden["query"], text).logits, golden["logits"]
    )
    videos = torch.cat([golden["support"], golden["query"]])
    assert_recorded(head.class_logits(videos[None], golden["text"])[0], golden["class_logits"])


def test_trx_equals_the_recorded_tensors(shared_dir: Path) -> None:
    golden, weights = recorded(shared_dir / "golden" / "trx_5way_3shot.safetensors")
    head = TRX(dim=32, frames=8, out_dim=48).eval()
    names = {"k_linear": "key", "v_linear": "value", "norm_k": "norm"}
    head.load_state_dict(
        {
            f"attentions.{i}.{ours}.{p}": weights[f"{i}.{theirs}.{p}"]
            for i, (theirs, ours), p in itertools.product(range(2), names.items(), ("weight", "bias"))
        }
    )
    text = torch.zeros(5, 32)
    features = {name: {"final": golden[name][None]} for name in ("support", "query")}
    found = head.scores(Episode(**features, support_labels=golden["support_labels"][None], text=text[None]))
    pairs, triples = found.values()
    assert_recorded(pairs[0], golden["logits_pairs"])
    assert_recorded(triples[0], golden["logits_triples"])
    assert_recorded(
        head(golden["support"], golden["support_labels"], golden["query"], text).logits, golden["logits"]
    )


@pytest.mark.parametrize("name", HEADS)
def test_every_head_keeps_its_promises(name: str) -> None:
    check_head(name, dim=D, frames=T)
    assert build(name).trainable == HEADS[name].trained == bool([*build(name).parameters()])


@pytest.mark.parametrize(
    ("name", "says"), [("otam", "unknown setting"), ("prototype", "prototype has no settings, found")]
)
def test_unknown_settings_are_refused(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"{says} 'colour'"):
        build(name, colour=1)


def test_unknown_heads_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown head 'clipspm'; did you mean clip-spm"):
        build_head("clipspm", dim=D, frames=T)


def slowly(call: dict[str, Tensor], similarity: Callable[[list[Tensor], Tensor, Tensor], float]) -> Tensor:
    """Loops over episodes, queries and classes; ``similarity(supports of the class, query, class text)``."""
    out = torch.zeros(E, call["query"].shape[1], C)
    for e, q, c in itertools.product(range(E), range(call["query"].shape[1]), range(C)):
        chosen = [call["support"][e, s] for s in range(6) if call["support_labels"][e, s] == c]
        out[e, q, c] = similarity(chosen, call["query"][e, q], call["text"][e, c])
    return out


def cos(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=-1))


def centered(video: Tensor) -> Tensor:
    return video - video.mean(0)


def frame_cosine(supports: list[Tensor], query: Tensor) -> float:
    prototype = torch.stack(supports).mean(0)
    return sum(cos(query[t], prototype[t]) for t in range(T)) / T


@pytest.mark.parametrize(
    ("name", "similarity"),
    [
        ("zero-shot", lambda s, q, t: 100 * cos(q.mean(0), t)),
        ("prototype", lambda s, q, t: cos(q.mean(0), torch.stack(s).mean((0, 1)))),
        ("frame-cosine", lambda s, q, t: frame_cosine(s, q)),
        ("frame-cosine-centered", lambda s, q, t: frame_cosine([*map(centered, s)], centered(q))),
        (
            "tip-adapter",
            lambda s, q, t: (
                1.0 * sum(math.exp(-5.5 * (1 - cos(q.mean(0), x.mean(0)))) for x in s)
                + 100 * cos(q.mean(0), t)
            ),
        ),
    ],
)
def test_training_free_heads_equal_their_formula(name: str, similarity: Callable[..., float]) -> None:
    call = episode()
    torch.testing.assert_close(build(name)(**call).logits, slowly(call, similarity), rtol=1e-4, atol=1e-5)


def test_best_assignment_is_the_one_scipy_finds_and_gradients_go_to_its_entries() -> None:
    similarity = torch.randn(3, 4, 6, 6, requires_grad=True)
    found = best_assignment(similarity)
    found.sum().backward()
    assert similarity.grad is not None
    for index in itertools.product(range(3), range(4)):
        rows, columns = linear_sum_assignment(similarity[index].detach().numpy(), maximize=True)
        torch.testing.assert_close(found[index], similarity[index][rows, columns].sum())
        chosen = torch.zeros(6, 6)
        chosen[rows, columns] = 1
        assert torch.equal(similarity.grad[index], chosen)


def test_cpm_focus_loss_is_smallest_for_attention_at_the_tokens_own_time() -> None:
    head = CPM(dim=D, frames=T, m_f=T)
    own = head._focus(torch.eye(T).expand(1, 1, T, T))
    assert own < head._focus(torch.full((1, 1, T, T), 1 / T))
    assert own < head._focus(torch.eye(T).flip(0).expand(1, 1, T, T))


def damped_cos(x: Tensor, y: Tensor) -> Tensor:
    return x @ y.mT / (x.norm(dim=-1, keepdim=True) * y.norm(dim=-1).unsqueeze(-2) + 0.01)


def test_clip_fsar_fuses_text_when_scoring_only() -> None:
    call = episode()
    head = build("clip-fsar", text_fusion=True, text_scale=7.0).eval()
    plain = build("clip-fsar", text_scale=7.0).eval()
    assert "fusion_b" in head.tunable
    text = 7 * damped_cos(call["query"].mean(2), call["text"])
    matching = (T + plain(**call).logits) / T
    expected = 0.9 * text.log_softmax(-1) + 0.1 * matching.log_softmax(-1)
    torch.testing.assert_close(head(**call).logits, expected, rtol=1e-4, atol=1e-5)
    head.fusion_b.fill_(0.0)
    assert torch.equal(head(**call).logits.argmax(-1), plain(**call).logits.argmax(-1))
    torch.manual_seed(3)
    trained = head.train()(**call).logits
    torch.manual_seed(3)
    torch.testing.assert_close(trained, plain.train()(**call).logits)


def test_clip_fsar_adds_the_base_class_cross_entropy_on_the_scale_of_the_matching() -> None:
    call, labels, base = episode(), torch.randint(C, (E, 6)), base_classes()
    head = build("clip-fsar", class_text_weight=2.0).eval()
    without = head.episode_loss(head(**call), labels)
    videos = torch.cat([call["support"], call["query"]], dim=1).mean(2)
    logits = damped_cos(videos, base.text)
    truth = torch.cat([base.support, base.query], dim=1)
    expected = torch.stack([F.cross_entropy(x, y) for x, y in zip(logits, truth, strict=True)])
    found = head.episode_loss(head(**call, query_labels=labels, base=base), labels)
    torch.testing.assert_close(found - without, 2.0 * 6 / 16 * expected)


def test_semantic_prompt_reaches_supports_only() -> None:
    head, call = build("semantic-prompt").eval(), episode()
    other = head(**call | {"text": call["text"].flip(-1)}).logits
    assert not torch.allclose(other, head(**call).logits)
    # a class without a change of text keeps its logits
    text = call["text"].clone()
    text[:, 0] += 1
    torch.testing.assert_close(head(**call | {"text": text}).logits[..., 1:], head(**call).logits[..., 1:])


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("trx", {"sizes": (2, 9)}, "sizes: found \\(2, 9\\); needed one or more of 1..4"),
        ("trx", {"sizes": (2, 2)}, "sizes: found \\(2, 2\\); needed one or more of 1..4, each once"),
        ("clip-fsar", {"heads": 3}, "heads: found 3; needed a divisor of D = 16"),
        ("cpm", {"m_f": 13}, "m_f: found 8, 13; needed"),
        ("semantic-prompt", {"heads": 5}, "heads: found 5; needed a divisor"),
    ],
)
def test_impossible_options_are_refused(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **config)


def test_trx_refuses_another_number_of_frames() -> None:
    call = episode()
    with pytest.raises(ValueError, match="support: found 3 frames per video; needed 4"):
        build("trx")(**{k: v[:, :, :3] if k in ("support", "query") else v for k, v in call.items()})
