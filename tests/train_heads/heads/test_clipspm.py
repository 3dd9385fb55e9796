"""CLIP-SPM's switches, properties and refusals; the recorded tensors are in test_golden.py."""

import itertools
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from clipspm.train_heads.heads import (
    CLIPSPM,
    BaseClasses,
    CLIPSPMConfig,
    Episode,
    Evidence,
    HeadOutput,
    build_head,
    load_preset,
)
from clipspm.train_heads.heads.clipspm.config import PRESETS, make_config
from clipspm.train_heads.heads.clipspm.hsmr import MotionFeatures, MovingFrames
from clipspm.train_heads.heads.parts.attention import sinusoidal_positions
from clipspm.train_heads.heads.parts.dropout import Dropout
from clipspm.train_heads.heads.parts.matching import matcher, otam

E, C, T, D = 2, 3, 4, 16
LABELS = torch.tensor([[2, 0, 1, 0, 0, 1], [1, 2, 2, 0, 2, 2]])
SMALL: dict[str, Any] = {"heads": 2, "head_width": 8, "ffn_width": 24}


def build(*, layer_dims: dict[str, int] | None = None, **config: Any) -> CLIPSPM:
    torch.manual_seed(0)
    return CLIPSPM(D, CLIPSPMConfig(**{**SMALL, **config}), layer_dims=layer_dims)


def episode(queries: int = 5, seed: int = 1) -> dict[str, Tensor]:
    """Two episodes with unequal supports per class, in shuffled order."""
    g = torch.Generator().manual_seed(seed)
    return {
        "support": torch.randn(E, 6, T, D, generator=g),
        "support_labels": LABELS,
        "query": torch.randn(E, queries, T, D, generator=g),
        "text": torch.randn(E, C, D, generator=g),
    }


def base_classes() -> BaseClasses:
    g = torch.Generator().manual_seed(5)
    support, query = (torch.randint(9, (E, n), generator=g) for n in (6, 5))
    return BaseClasses(torch.randn(9, D, generator=g), support, query)


def as_episode(protocol: Any = "inductive", **call: Tensor) -> Episode:
    """The arguments of a call as heads see them."""
    features = {name: {"final": call.pop(name)} for name in ("support", "query")}
    return Episode(**features, **call, protocol=protocol)


def evidence(head: CLIPSPM, **call: Any) -> Evidence:
    """What scoring finds in evaluation mode."""
    return head.eval().scores(as_episode(**{**episode(), **call}))


RAW = torch.cat([episode()["support"], episode()["query"]], dim=1)
QUERY_LABELS = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
close = torch.testing.assert_close


def loss_of(head: CLIPSPM, **more: Any) -> Tensor:
    output = head(**episode(), query_labels=QUERY_LABELS, **more)
    return head.episode_loss(output, QUERY_LABELS)


def still(head: CLIPSPM, **more: Any) -> list[str]:
    """Parameters that one training step would not move."""
    loss_of(head.train(), **more).sum().backward()
    return [n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


# Properties.


@settings(max_examples=15, deadline=None)
@given(
    kept=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
    added=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_inductive_logits_ignore_other_queries(kept: list[int], added: int, seed: int) -> None:
    head, call = build().eval(), episode()
    alone = head(**call, protocol="inductive").logits
    others = 5 * torch.randn(E, added, T, D, generator=torch.Generator().manual_seed(seed))
    query = torch.cat([call["query"][:, kept], others], dim=1)
    found = head(**call | {"query": query}, protocol="inductive").logits
    close(found[:, : len(kept)], alone[:, kept], rtol=1e-4, atol=1e-5)


def test_transductive_logits_do_depend_on_other_queries() -> None:
    head, call = build().eval(), episode()
    every = head(**call, protocol="transductive").logits
    fewer = head(**call | {"query": call["query"][:, :2]}, protocol="transductive").logits
    assert not torch.allclose(every[:, :2], fewer, atol=1e-3)


def test_inductive_is_transductive_of_one_query_at_a_time() -> None:
    head, call = build().eval(), episode()
    found = head(**call, protocol="inductive").logits
    for q in range(5):
        one = head(**call | {"query": call["query"][:, q : q + 1]}, protocol="transductive").logits
        close(found[:, q : q + 1], one, rtol=1e-4, atol=1e-5)


def test_inductive_gradients_are_those_of_queries_one_at_a_time() -> None:
    head, call = build(dropout=0.0, ffn_dropout=0.0).eval(), episode()
    head(**call, protocol="inductive").logits.square().sum().backward()
    found = {n: p.grad.clone() for n, p in head.named_parameters() if p.grad is not None}
    head.zero_grad()
    for q in range(5):
        one = head(**call | {"query": call["query"][:, q : q + 1]}, protocol="transductive").logits
        one.square().sum().backward()
    for name, p in head.named_parameters():
        if p.grad is not None:
            close(found[name], p.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("protocol", ["inductive", "transductive"])
@pytest.mark.parametrize("consistency", [True, False])
def test_a_batch_is_a_loop_over_episodes(protocol: Any, consistency: bool) -> None:
    head, call = build(consistency=consistency).eval(), episode()
    batched = head(**call, protocol=protocol, query_labels=QUERY_LABELS)
    for e in range(E):
        one = {k: v[e] for k, v in call.items()}
        alone = head(**one, protocol=protocol, query_labels=QUERY_LABELS[e])
        close(alone.logits, batched.logits[e], rtol=1e-4, atol=1e-5)
        assert list(batched.losses) == ["motion", "text", "consistency"][: 3 if consistency else 1]
        for name, loss in batched.losses.items():
            close(alone.losses[name], loss[e], rtol=1e-4, atol=1e-5)


def test_order_of_videos_does_not_matter_to_the_losses() -> None:
    head, call = build(consistency=True).eval(), episode()
    s, q = torch.randperm(6), torch.randperm(5)
    shuffled = call | {
        "support": call["support"][:, s],
        "support_labels": LABELS[:, s],
        "query": call["query"][:, q],
    }
    expected = head(**call, query_labels=QUERY_LABELS).losses
    found = head(**shuffled, query_labels=QUERY_LABELS[:, q]).losses
    for name, value in expected.items():
        close(found[name], value, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    head, call = build(), episode()
    assert torch.equal(head.eval()(**call).logits, head(**call).logits)
    assert not torch.equal(head.train()(**call).logits, head(**call).logits)


def test_dropout_from_random_bytes() -> None:
    drop, x = Dropout(0.2), torch.randn(301, 777, requires_grad=True)
    torch.manual_seed(4)
    y = drop(x)
    y.sum().backward()
    assert x.grad is not None
    kept = x.grad != 0
    assert (~kept).float().mean().item() == pytest.approx(51 / 256, abs=0.005)
    close(y, torch.where(kept, x * 256 / 205, 0.0))
    close(x.grad, kept.float() * 256 / 205)
    torch.manual_seed(4)
    assert torch.equal(drop(x), y)
    assert not torch.equal(drop(x), y)
    assert drop.eval()(x) is x
    assert Dropout(0.0)(x) is not None
    assert not Dropout(1.0)(x).any()


@pytest.mark.parametrize("share", [0, 1, 2, 3, 4, 5, 6, 7])
def test_every_byte_of_a_random_word_is_uniform(share: int) -> None:
    torch.manual_seed(0)
    kept = Dropout(0.5)(torch.ones(40_000)).view(-1, 8)[:, share] != 0
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_bfloat16_training_stays_close_to_float32() -> None:
    head = build(dropout=0.0, ffn_dropout=0.0).train()
    loss_of(head).sum().backward()
    exact = torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None])
    head.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = head(**episode(), query_labels=QUERY_LABELS)
    assert output.logits.dtype == torch.float32
    head.episode_loss(output, QUERY_LABELS).sum().backward()
    rounded = torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None])
    assert F.cosine_similarity(exact, rounded, dim=0) > 0.999


# What is computed when.


def count_tokens(head: CLIPSPM, **call: Any) -> tuple[int, HeadOutput]:
    """Sequences that go through the block of SF in one call."""
    seen = []
    handle = head.fusion.block.register_forward_pre_hook(
        lambda _, x: seen.extend(y.shape[:2].numel() for y in x)
    )
    output = head(**episode(), **call)
    handle.remove()
    return sum(seen), output


def test_scoring_computes_no_losses_and_only_the_pass_that_it_needs() -> None:
    sequences, output = count_tokens(build().eval())
    assert sequences == E * 11
    assert output.losses == {}


def test_training_adds_the_motion_pass_and_consistency_the_second_branches() -> None:
    assert count_tokens(build().train(), query_labels=QUERY_LABELS)[0] == 2 * E * 11
    assert count_tokens(build(consistency=True).train(), query_labels=QUERY_LABELS)[0] == 3 * E * 11
    assert count_tokens(build(hsmr=False).train(), query_labels=QUERY_LABELS)[0] == E * 11
    assert count_tokens(build(spm=False).eval())[0] == 0


def test_without_query_labels_there_are_no_losses() -> None:
    assert build(consistency=True).train()(**episode()).losses == {}


def test_loss_is_the_documented_sum() -> None:
    head = build(consistency=True).eval()
    with torch.no_grad():
        head.w_motion.fill_(3.0)
    output = head(**episode(), query_labels=QUERY_LABELS)
    nll = F.cross_entropy(output.logits.flatten(0, 1), QUERY_LABELS.flatten(), reduction="none").view(E, 5)
    terms = output.losses
    expected = nll.sum(1) / 16 + 0.001 * (3 * terms["motion"] + terms["text"] + terms["consistency"])
    close(head.episode_loss(output, QUERY_LABELS), expected)


# Modules dropped.


@pytest.mark.parametrize(("hsmr", "spm", "padm"), list(itertools.product([True, False], repeat=3)))
def test_every_combination_of_modules(hsmr: bool, spm: bool, padm: bool) -> None:
    head = build(hsmr=hsmr, spm=spm, padm=padm)
    assert head.trainable == (hsmr or spm or padm)
    if head.trainable:
        assert still(head) == ["scale"]
    output = head.eval()(**episode(), protocol="transductive", query_labels=QUERY_LABELS)
    found = evidence(head, protocol="transductive")
    assert list(output.losses) == (["motion"] if hsmr else [])
    assert list(found) == (["prototype", "refined", "anchor"] if padm else ["prototype"])
    if not spm:
        mean = F.one_hot(LABELS, C).float().mT @ episode()["support"].flatten(2)
        prototypes = (mean / F.one_hot(LABELS, C).sum(1).unsqueeze(-1)).unflatten(-1, (T, D))
        close(found["prototype"], -otam(prototypes, episode()["query"]))
    close(output.logits, 0.5 * found["prototype"] + sum(found[name] for name in list(found)[1:]))
    assert dict.fromkeys(found, (E, 5, C)) == {n: x.shape for n, x in output.evidence.items()}


def test_motion_equals_two_convolutions_over_time() -> None:
    motion, v = MotionFeatures(D), torch.randn(5, 7, D)
    conv1, conv2 = (torch.nn.Conv1d(D, D, 3, padding=1) for _ in range(2))
    with torch.no_grad():
        for conv, ours in ((conv1, motion.conv1), (conv2, motion.conv2)):
            conv.weight.copy_(ours.weight.unflatten(1, (3, D)).transpose(1, 2))
            conv.bias.copy_(ours.bias)  # type: ignore[union-attr]
    filtered = conv2(conv1(v.mT)).mT
    forward, backward = filtered[:, 1:] - v[:, :-1], filtered[:, :-1] - v[:, 1:]
    close(motion(v), (0.5 * (forward + backward)).mean(1), rtol=1e-4, atol=1e-5)


# Variants.


def test_prompts_come_from_the_mean_of_the_video() -> None:
    head, call = build(), episode()
    made = evidence(head).kept
    close(made.prompt, head.prompts.ffn(call["text"].mean(1, keepdim=True) * RAW.mean((2, 3)).unsqueeze(-1)))


def test_shallow_motion_from_another_layer() -> None:
    head = build(shallow_layer="layer6", layer_dims={"layer6": 6}).eval()
    assert head.layers == ("final", "layer6")
    call = episode()
    support, query = torch.randn(E, 6, T, 6), torch.randn(E, 5, T, 6)
    both = {
        "support": {"final": call.pop("support"), "layer6": support},
        "query": {"final": call.pop("query"), "layer6": query},
    }
    shallow = head.shallow_motion(Episode(**both, **call), RAW)
    close(shallow, head.motion(head.lift(torch.cat([support, query], dim=1))))
    output = head.train()(**both, **call, query_labels=QUERY_LABELS)
    head.episode_loss(output, QUERY_LABELS).sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == ["scale"]
    with pytest.raises(ValueError, match="support: found layers final; needed layer 'layer6' too"):
        head(**episode())
    both["query"]["layer6"] = query[..., :5]
    with pytest.raises(
        ValueError, match=r"query\['layer6'\]: found shape \(2, 5, 4, 5\); needed \[2, 5, 4, 6\]"
    ):
        head(**both, **call)


def test_refined_frames_are_the_same_in_training_and_for_the_losses() -> None:
    head = build(dropout=0.0, ffn_dropout=0.0)
    together = head.train().scores(as_episode(**episode())).kept
    alone = head.refined_motion(as_episode(**episode()), RAW)
    close(together.motion.frames, alone.frames, rtol=1e-4, atol=1e-4)
    close(together.motion.token, alone.token, rtol=1e-4, atol=1e-4)
    assert evidence(head).kept.motion is None  # scoring needs it for nothing


@pytest.mark.parametrize("name", ["otam", "bimhm", "mean-cosine"])
def test_matchers(name: str) -> None:
    head = build(matcher=name)
    found = evidence(head, protocol="transductive")
    refined = found.kept.refined
    close(found["anchor"], -matcher(name)(refined.class_token, refined.anchor).expand(E, 5, C))
    assert still(head) == ["scale"]


def test_positions_make_frame_order_count_in_fusion() -> None:
    head = build(position=True)
    seen = RAW + 0.1 * sinusoidal_positions(T, D, RAW)
    close(evidence(head).kept.gated, head.fusion.gate_frames(seen), rtol=1e-4, atol=1e-5)
    assert still(head) == ["scale"]


def test_hsmr_can_refine_what_moves() -> None:
    head = build(matching_input="refined-centered", position=True, spm=False).eval()
    seen = RAW - RAW.mean(2, keepdim=True) + 0.1 * sinusoidal_positions(T, D, RAW)
    ((refined, token),) = head.fusion((head.fusion.gate_frames(seen), head.motion(seen)))
    made = evidence(head).kept
    close(made.motion.frames, refined)
    close(made.motion.token, token)
    close(made.query, refined[:, 6:])
    shifted = {k: v + 3.0 if k in ("support", "query") else v for k, v in episode().items()}
    # what stands still is not seen
    close(head.scores(as_episode(**shifted)).kept.query, refined[:, 6:], rtol=1e-4, atol=1e-4)
    assert not still(build(matching_input="refined-centered", spm=False, padm=False))[1:]  # all but ``scale``
    assert torch.equal(
        build(matching_input="refined-centered", hsmr=False).eval()(**episode()).logits,
        build(hsmr=False).eval()(**episode()).logits,
    )


def test_motion_enters_the_matching_with_its_weight() -> None:
    plain, more = build().eval(), build(motion_weight=0.7).eval()
    moving = RAW - RAW.mean(2, keepdim=True)
    prototypes = torch.stack(
        [torch.stack([moving[e, :6][LABELS[e] == c].mean(0) for c in range(C)]) for e in range(E)]
    )
    d0 = otam(prototypes, moving[:, 6:])
    close(evidence(more)["motion"], -d0)
    close(more(**episode()).logits, plain(**episode()).logits - 0.7 * d0, rtol=1e-4, atol=1e-4)
    assert "motion" not in evidence(build(motion_weight=0.7, hsmr=False))


def test_weights_of_the_distances() -> None:
    head = build(d1_weight=2.0, d2_weight=0.3, d3_weight=0.0)
    found = evidence(head)
    close(head(**episode()).logits, 2.0 * found["prototype"] + 0.3 * found["refined"])


def test_blocks_may_start_as_the_identity() -> None:
    made = evidence(build(zero_init=True, spm=False)).kept
    close(made.refined.query, made.query)
    assert "padm.block.out.weight" not in still(build(zero_init=True, spm=False))


def test_logit_scale_multiplies_and_may_learn() -> None:
    plain = build().eval()(**episode()).logits
    close(build(logit_scale=4.0).eval()(**episode()).logits, 4 * plain)
    head = build(logit_scale=4.0, learn_logit_scale=True)
    close(head.eval()(**episode()).logits, 4 * plain)
    assert still(head) == ["scale"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"matcher": "dtw"}, "matcher: found 'dtw'; needed one of otam, bimhm, mean-cosine"),
        ({"matching_input": "motion"}, "matching_input: found 'motion'; needed one of raw, refined"),
        ({"w_text": 0.7}, "w_text: found 0.7; needed 0 to 0.5"),
        ({"dropout": 1.5}, "dropout: found 1.5; needed 0 to 1"),
        ({"logit_scale": 0.0}, "logit_scale: found 0.0; needed a positive number"),
    ],
)
def test_contradictions_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPSPMConfig(**config)


# Building.


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_fields_of_the_configuration(name: str) -> None:
    values = load_preset(name)
    assert values.keys() == {"rho_v", "rho_t", "slope", "alpha", "w_c", "w_text"}
    config = asdict(make_config(name))
    assert {k: config[k] for k in values} == values


def test_the_default_configuration_is_the_hmdb51_preset() -> None:
    assert make_config("hmdb51") == CLIPSPMConfig()
    assert load_preset("ssv2-small") == load_preset("hmdb51")


def test_unknown_presets_and_fields_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="preset: found 'jester'; needed one of hmdb51, ucf101"):
        load_preset("jester")
    with pytest.raises(ValueError, match="unknown setting 'alpah'; did you mean alpha"):
        make_config(alpah=1)


def test_build_head_takes_a_preset_and_the_width_of_a_layer() -> None:
    config = {"preset": "ucf101", "alpha": 0.5, "shallow_layer": "layer3", **SMALL}
    head = build_head("clip-spm", dim=D, frames=T, config=config, layer_dims={"layer3": 12})
    assert isinstance(head, CLIPSPM)
    assert (head.config.rho_v, head.config.alpha, head.lift.in_features) == (2, 0.5, 12)
    with pytest.raises(ValueError, match=r"shallow_layer: found 'layer3'; needed a cached layer \(layer9\)"):
        build_head("clip-spm", dim=D, frames=T, config=config, layer_dims={"layer9": 12})
    # --set shallow_layer=3 arrives as a number
    numbered = build_head(
        "clip-spm", dim=D, frames=T, config={**config, "shallow_layer": 3}, layer_dims={"3": 12}
    )
    assert (numbered.layers, numbered.lift.in_features) == (("final", "3"), 12)


@pytest.mark.parametrize(("dim", "count"), [(512, 17_315_330)])
def test_number_of_parameters(dim: int, count: int) -> None:
    with torch.device("meta"):
        head = CLIPSPM(dim)
    assert sum(p.numel() for p in head.parameters()) == count


# Checkpoints of the authors.


def full_head() -> CLIPSPM:
    torch.manual_seed(1)
    head = CLIPSPM(D)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.01 * torch.randn_like(p))
    return head


def test_reference_state_round_trip() -> None:
    head = full_head()
    state = head.to_reference_state()
    assert state["motion_conv1.weight"].shape == (D, D, 3)
    assert state["context1.layers.0.0.fn.to_k.weight"].shape == (2048, D)
    assert sum(v.numel() for v in state.values()) == sum(p.numel() for p in head.parameters())
    wrapped = {"model_state_dict": state | {"backbone.conv1.weight": torch.zeros(3)}, "epoch": 7}
    for checkpoint in (state, wrapped, {f"module.{k}": v for k, v in state.items()}):
        other = CLIPSPM.from_reference(checkpoint).eval()
        assert other.dim == D
        assert torch.equal(other(**episode()).logits, head.eval()(**episode()).logits)


def test_a_checkpoint_that_does_not_fit_is_refused_by_name() -> None:
    state = full_head().to_reference_state()
    with pytest.raises(ValueError, match=r"gate_vision.0.weight: found shape \(8, 16\), needed \(32, 16\)"):
        CLIPSPM.from_reference(state, preset="ucf101")
    with pytest.raises(ValueError, match="gate_text.2.bias: missing, needed shape"):
        CLIPSPM.from_reference({k: v for k, v in state.items() if k != "gate_text.2.bias"})
    with pytest.raises(ValueError, match="logit_bias: unknown to CLIP-SPM"):
        CLIPSPM.from_reference(state | {"logit_bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="motion_conv1.bias: missing"):
        CLIPSPM.from_reference({"epoch": torch.tensor(3)})
    with pytest.raises(ValueError, match="scale: found float; needed a tensor"):
        CLIPSPM.from_reference(state | {"scale": 1.0})


def test_modules_switched_off_are_left_in_the_checkpoint() -> None:
    state = full_head().to_reference_state()
    head = CLIPSPM.from_reference(state, hsmr=False, padm=False)
    assert not head.config.hsmr
    assert "motion_conv1.weight" not in head.to_reference_state()


# Refusals of arguments.


BAD: list[tuple[dict[str, Any], str]] = [
    ({"support": torch.randn(E, 6, T, 7)}, r"support: found shape \(2, 6, 4, 7\); needed \[E, S, T, 16\]"),
    ({"support": torch.randn(6, D)}, r"support: found shape \(6, 16\); needed"),
    ({"support": torch.randn(E, 6, 1, D)}, "support: found 1 frames per video; needed 2 or more"),
    ({"query": torch.randn(E, 5, 3, D)}, r"query: found shape \(2, 5, 3, 16\); needed \[2, Q, 4, 16\]"),
    ({"query": torch.randn(E, 0, T, D)}, r"query: found shape \(2, 0, 4, 16\); needed"),
    ({"query": torch.randn(5, T, D)}, r"query: found shape \(5, 4, 16\); needed"),
    ({"text": torch.randn(E, C, 9)}, r"text: found shape \(2, 3, 9\); needed \[2, C, 16\]"),
    ({"support_labels": LABELS[:, :4]}, r"support_labels: found shape \(2, 4\); needed \[2, 6\]"),
    ({"support_labels": LABELS.float()}, "support_labels: found dtype torch.float32; needed an integer"),
    ({"support_labels": LABELS.clamp(max=1)}, "support_labels: found no support of class 2 of episode 0; needed"),
    ({"support_labels": LABELS + 1}, r"support_labels: found label 3; needed 0..2, a row of text"),
    ({"support_labels": LABELS - 1}, r"support_labels: found label -1; needed 0..2"),
    ({"query_labels": QUERY_LABELS + 2}, r"query_labels: found label \d; needed 0..2, a row of text"),
    ({"query_labels": QUERY_LABELS[:, :2]}, r"query_labels: found shape \(2, 2\); needed \[2, 5\]"),
    ({"protocol": "both"}, "protocol: found 'both'; needed one of inductive, transductive"),
    (
        {"base": BaseClasses(torch.randn(3, D), torch.full((E, 6), 3), torch.zeros(E, 5, dtype=torch.long))},
        r"base.support: found label 3; needed 0..2, a row of base.text",
    ),
    (
        {"base": BaseClasses(torch.randn(3, 4), torch.zeros(E, 6), torch.zeros(E, 5))},
        r"base.text: found shape \(3, 4\); needed \[B, 16\]",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(**episode() | changes)


@pytest.mark.parametrize("name", ["support", "query", "text"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_not_finite_are_refused(name: str, value: float) -> None:
    call = episode()
    call[name][1, 2, 0] = value
    with pytest.raises(
        ValueError, match=rf"{name}: found \d+ values that are NaN or infinite, the first at \[1, 2"
    ):
        build()(**call)


def test_checks_can_be_skipped() -> None:
    head, call = build().eval(), episode()
    call["support"][0, 0] = float("nan")
    head.check = False
    assert head(**call).logits.isnan().any()


def test_missing_class_without_the_episode_axis() -> None:
    call = {k: v[0] for k, v in episode().items()} | {"support_labels": torch.zeros(6, dtype=torch.long)}
    with pytest.raises(
        ValueError, match="no support of class 1; needed one or more for each of the 3 classes"
    ):
        build()(**call)


def test_the_filter_over_time_against_a_convolution() -> None:
    moving = MovingFrames(5)
    frames = torch.randn(3, 7, D, generator=torch.Generator().manual_seed(0))
    still_mean = frames - frames.mean(1, keepdim=True)
    close(moving(frames), still_mean)  # it starts as the identity
    with torch.no_grad():
        assert moving.taps is not None
        moving.taps.copy_(torch.tensor([-0.05, 0.02, 0.01]))
    kernel = torch.tensor([0.1, 0.2, 0.5, 0.2, 0.1]).view(1, 1, 5)
    rows = still_mean.transpose(1, 2).reshape(-1, 1, 7)
    filtered = F.conv1d(rows, kernel, padding=2).view(3, D, 7).transpose(1, 2)
    close(moving(frames), filtered - filtered.mean(1, keepdim=True))
    close(moving(frames.flip(1)), moving(frames).flip(1))  # no direction of time is favoured
    short = frames[:, :2]
    assert moving(short).shape == short.shape


@pytest.mark.parametrize("taps", [1, 4, -3])
def test_a_filter_has_a_middle(taps: int) -> None:
    with pytest.raises(ValueError, match=f"motion_taps: found {taps}"):
        CLIPSPMConfig(motion_taps=taps)
