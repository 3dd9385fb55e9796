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

from clipspm.train_heads.heads import CLIPSPM, BaseClasses, CLIPSPMConfig, HeadOutput, build_head, load_preset
from clipspm.train_heads.heads.clipspm.config import PRESETS, make_config
from clipspm.train_heads.heads.clipspm.hsmr import MotionFeatures, MovingFrames
from clipspm.train_heads.heads.parts.attention import sinusoidal_positions
from clipspm.train_heads.heads.parts.dropout import Dropout
from clipspm.train_heads.heads.parts.matching import matcher, otam

E, C, T, D = 2, 3, 4, 16
LABELS = torch.tensor([[2, 0, 1, 0, 0, 1], [1, 2, 2, 0, 2, 2]])
SMALL: dict[str, Any] = {"heads": 2, "head_width": 8, "ffn_width": 24}


def build(**config: Any) -> CLIPSPM:
    torch.manual_seed(0)
    return CLIPSPM(D, CLIPSPMConfig(**{**SMALL, **config}))


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
        for name in ("motion", "text", "consistency"):
            close(alone.losses[name], batched.losses[name][e], rtol=1e-4, atol=1e-5)


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
    assert count_tokens(build(consistency=True).train())[0] == 2 * E * 11
    assert count_tokens(build(hsmr=False).train(), query_labels=QUERY_LABELS)[0] == E * 11
    assert count_tokens(build(spm=False).eval())[0] == 0


def test_losses_without_query_labels_leave_out_those_that_need_them() -> None:
    head = build(consistency=True).train()
    losses = head(**episode()).losses
    assert (losses["motion"] > 0).all()
    assert not losses["text"].any()
    assert not losses["consistency"].any()


def test_loss_is_the_documented_sum() -> None:
    head = build(consistency=True, w_motion=3.0).eval()
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
    t = head.eval().trace(**episode(), protocol="transductive", query_labels=QUERY_LABELS)
    losses = t.output.losses
    assert bool(losses["motion"].any()) == hsmr
    assert t.d1 is not None
    if not spm:
        mean = F.one_hot(LABELS, C).float().mT @ episode()["support"].flatten(2)
        prototypes = (mean / F.one_hot(LABELS, C).sum(1).unsqueeze(-1)).unflatten(-1, (T, D))
        close(t.d1, otam(prototypes, episode()["query"]))
    expected = -0.5 * t.d1
    if padm:
        assert t.d2 is not None
        assert t.d3 is not None
        expected = expected - t.d2 - t.d3
    close(t.output.logits, expected)


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


def test_mean_frame_prompts() -> None:
    head, call = build(prompt="mean-frame"), episode()
    t = head.eval().trace(**call)
    videos = torch.cat([call["support"], call["query"]], dim=1)
    close(t.prompt, head.prompts.ffn(call["text"].mean(1, keepdim=True) * videos.mean(2)))
    assert still(head) == ["scale"]
    scalar = build().eval()
    expected = scalar.prompts.ffn(call["text"].mean(1, keepdim=True) * videos.mean((2, 3)).unsqueeze(-1))
    close(scalar.trace(**call).prompt, expected)


def test_shallow_motion_from_another_layer() -> None:
    head = build(shallow_layer="layer6", shallow_dim=6)
    assert (head.shallow_layer, head.shallow_dim) == ("layer6", 6)
    shallow = {"support_shallow": torch.randn(E, 6, T, 6), "query_shallow": torch.randn(E, 5, T, 6)}
    t = head.eval().trace(**episode(), query_labels=QUERY_LABELS, **shallow)
    close(t.shallow, head.motion(head.lift(torch.cat([*shallow.values()], dim=1))))
    assert still(head, **shallow) == ["scale"]
    with pytest.raises(
        ValueError, match=r"support_shallow \(layer 'layer6'\): found None; needed \[2, 6, 4, 6\]"
    ):
        head(**episode())


@pytest.mark.parametrize("matching_input", ["raw", "centered", "difference", "refined"])
def test_what_enters_the_matching(matching_input: Any) -> None:
    head = build(matching_input=matching_input)
    t = head.eval().trace(**episode(), query_labels=QUERY_LABELS)
    expected = {
        "raw": t.raw,
        "centered": t.raw - t.raw.mean(2, keepdim=True),
        "difference": t.raw.diff(dim=2),
        "refined": t.refined,
    }[matching_input]
    assert torch.equal(t.frames, expected)
    assert t.query is not None
    assert t.query.shape == (E, 5, T - (matching_input == "difference"), D)
    assert still(head) == ["scale"]
    assert torch.equal(
        build(matching_input=matching_input, hsmr=False).eval().trace(**episode()).frames, t.raw
    )


def test_refined_frames_are_the_same_when_they_feed_and_when_they_do_not() -> None:
    feeds = build(matching_input="refined").eval().trace(**episode(), query_labels=QUERY_LABELS)
    apart = build().eval().trace(**episode(), query_labels=QUERY_LABELS)
    assert apart.refined is not None
    close(feeds.refined, apart.refined)
    close(feeds.output.losses["motion"], apart.output.losses["motion"])


@pytest.mark.parametrize("name", ["otam", "bimhm", "mean-cosine"])
def test_matchers(name: str) -> None:
    head = build(matcher=name)
    t = head.eval().trace(**episode(), protocol="transductive")
    assert t.query is not None
    assert t.padm is not None
    close(t.d3, matcher(name)(t.padm.class_token, t.padm.anchor).expand(E, 5, C))
    assert still(head) == ["scale"]


def test_smoothing_reaches_the_matching() -> None:
    assert not torch.allclose(
        build(smoothing=0.1).eval()(**episode()).logits, build().eval()(**episode()).logits
    )


def test_positions_make_frame_order_count_in_fusion() -> None:
    head = build(position=True)
    t = head.eval().trace(**episode())
    close(t.frames - t.raw, (0.1 * sinusoidal_positions(T, D, t.raw)).expand_as(t.raw), rtol=1e-4, atol=1e-5)
    assert still(head) == ["scale"]


def test_hsmr_can_refine_what_moves() -> None:
    head = build(matching_input="refined-centered", position=True).eval()
    t = head.trace(**episode(), query_labels=QUERY_LABELS)
    moving = t.raw - t.raw.mean(2, keepdim=True)
    seen = moving + 0.1 * sinusoidal_positions(T, D, t.raw)
    shallow = head.motion(seen)
    close(t.shallow, shallow)
    ((refined, token),) = head.fusion((head.fusion.gate_frames(seen), shallow))
    close(t.refined, refined)
    close(t.motion_token, token)
    close(t.frames, refined)
    shifted = {k: v + 3.0 if k in ("support", "query") else v for k, v in episode().items()}
    close(head.trace(**shifted).frames, refined, rtol=1e-4, atol=1e-4)  # what stands still is not seen
    assert not still(build(matching_input="refined-centered", spm=False, padm=False))[1:]  # all but ``scale``


def test_motion_enters_the_matching_with_its_weight() -> None:
    plain, more = build().eval(), build(motion_weight=0.7).eval()
    a, b = plain.trace(**episode()), more.trace(**episode())
    moving = a.raw - a.raw.mean(2, keepdim=True)
    prototypes = torch.stack(
        [torch.stack([moving[e, :6][LABELS[e] == c].mean(0) for c in range(C)]) for e in range(E)]
    )
    d0 = otam(prototypes, moving[:, 6:])
    close(b.d0, d0)
    close(b.output.logits, a.output.logits - 0.7 * d0, rtol=1e-4, atol=1e-4)
    assert build(motion_weight=0.7, hsmr=False).eval().trace(**episode()).d0 is None


def test_weights_of_the_distances() -> None:
    t = build(d1_weight=2.0, d2_weight=0.3, d3_weight=0.0).eval().trace(**episode())
    close(t.output.logits, -(2.0 * t.d1 + 0.3 * t.d2))


def test_blocks_may_start_as_the_identity() -> None:
    t = build(zero_init=True, spm=False).eval().trace(**episode())
    assert t.padm is not None
    close(t.padm.query, t.query)
    assert "padm.block.out.weight" not in still(build(zero_init=True, spm=False))


def test_logit_scale_multiplies_and_may_learn() -> None:
    plain = build().eval()(**episode()).logits
    close(build(logit_scale=4.0).eval()(**episode()).logits, 4 * plain)
    head = build(logit_scale=4.0, learn_logit_scale=True)
    close(head.eval()(**episode()).logits, 4 * plain)
    assert still(head) == ["scale"]


@pytest.mark.parametrize("source", ["modulated", "refined"])
def test_class_text_is_the_cross_entropy_against_all_base_classes(source: Any) -> None:
    head, base = build(class_text_weight=2.0, class_text_input=source), base_classes()
    t = head.eval().trace(**episode(), query_labels=QUERY_LABELS, base=base)
    assert t.query is not None
    if source == "refined":
        assert t.refined is not None
        frames = t.refined
    else:
        assert t.prompt is not None
        gated = head.fusion.gate_frames(t.raw)
        ((frames, _),) = head.fusion((gated, t.prompt))
    logits = 100 * F.normalize(frames.mean(2), dim=-1) @ F.normalize(base.text, dim=-1).T
    truth = torch.cat([base.support, base.query], dim=1)
    expected = torch.stack([F.cross_entropy(x, y) for x, y in zip(logits, truth, strict=True)])
    close(t.output.losses["class_text"], expected, rtol=1e-4, atol=1e-4)
    without = dict(t.output.losses)
    del without["class_text"]
    gap = head.episode_loss(t.output, QUERY_LABELS) - head.episode_loss(
        HeadOutput(t.output.logits, without), QUERY_LABELS
    )
    close(gap, 2.0 * 5 / 16 * expected, rtol=1e-4, atol=1e-4)
    assert still(head, base=base) == []


def test_class_text_with_consistency_shares_its_passes() -> None:
    head = build(class_text_weight=1.0, consistency=True).train()
    assert count_tokens(head, query_labels=QUERY_LABELS, base=base_classes())[0] == 3 * E * 11
    head = build(class_text_weight=1.0).train()
    assert count_tokens(head, query_labels=QUERY_LABELS, base=base_classes())[0] == E * (2 * 11 + 6)
    assert "class_text" not in head(**episode(), query_labels=QUERY_LABELS).losses


@pytest.mark.parametrize("source", ["raw", "refined", "modulated"])
def test_text_fusion_mixes_log_probabilities(source: Any) -> None:
    head, call = build(text_fusion=True, text_input=source, fusion_b=0.3).eval(), episode()
    matching = build().eval()(**call).logits
    t = head.trace(**call)
    frames = {"raw": t.raw, "refined": t.refined, "modulated": t.query}[source]
    assert frames is not None
    mean = F.normalize(frames[:, -5:].mean(2), dim=-1)
    text = 100 * mean @ F.normalize(call["text"], dim=-1).mT
    expected = 0.3 * text.log_softmax(-1) + 0.7 * matching.log_softmax(-1)
    close(t.output.logits, expected, rtol=1e-4, atol=1e-4)
    assert {"fusion_b"} == head.tunable().keys()
    head.get_buffer("fusion_b").fill_(0.0)
    assert torch.equal(head(**call).logits.argmax(-1), matching.argmax(-1))
    head.get_buffer("fusion_b").fill_(1.0)
    close(head(**call).logits, text.log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_text_fusion_enters_training_on_request_only() -> None:
    call = episode()
    options: dict[str, Any] = {"dropout": 0.0, "ffn_dropout": 0.0}
    plain = build(**options).train()(**call).logits
    close(build(text_fusion=True, **options).train()(**call).logits, plain)
    fused = build(text_fusion=True, fusion_in_training=True, **options)
    assert not torch.allclose(fused.train()(**call).logits, plain)
    assert still(fused) == []


def test_text_inputs_fall_back_when_their_module_is_off() -> None:
    call = episode()
    t = build(spm=False, text_fusion=True, text_input="modulated").eval().trace(**call)
    assert t.refined is not None
    raw = build(spm=False, hsmr=False, text_fusion=True, text_input="modulated").eval()
    same = build(spm=False, hsmr=False, text_fusion=True).eval()
    close(raw(**call).logits, same(**call).logits)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shallow_layer": "layer6"}, "shallow_layer='layer6' contradicts shallow_dim=None"),
        ({"shallow_dim": 8}, "shallow_layer=None contradicts shallow_dim=8"),
        ({"fusion_in_training": True}, "fusion_in_training=True contradicts text_fusion=False"),
        (
            {"class_text_weight": 1.0, "class_text_input": "raw"},
            "class_text_input='raw' contradicts class_text_weight",
        ),
        ({"matcher": "dtw"}, "matcher: found 'dtw'; needed one of otam, bimhm, mean-cosine"),
        ({"matching_input": "motion"}, "matching_input: found 'motion'; needed one of raw, centered"),
        ({"prompt": "mean"}, "prompt: found 'mean'; needed one of scalar, mean-frame"),
        ({"w_text": 0.7}, "w_text: found 0.7; needed 0 to 0.5"),
        ({"dropout": 1.5}, "dropout: found 1.5; needed 0 to 1"),
        ({"smoothing": 0.0}, "smoothing: found 0.0; needed a positive number"),
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
    assert (head.config.rho_v, head.config.alpha, head.shallow_dim) == (2, 0.5, 12)
    with pytest.raises(ValueError, match=r"shallow_layer: found 'layer3'; needed a cached layer \(layer9\)"):
        build_head("clip-spm", dim=D, frames=T, config=config, layer_dims={"layer9": 12})
    # --set shallow_layer=3 arrives as a number
    numbered = build_head(
        "clip-spm", dim=D, frames=T, config={**config, "shallow_layer": 3}, layer_dims={"3": 12}
    )
    assert (numbered.shallow_layer, numbered.shallow_dim) == ("3", 12)


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
