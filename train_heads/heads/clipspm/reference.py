"""Convert CLIP-SPM's parameters to and from the names in the authors' checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: our prefixes -> theirs; the rest of a name stays, or for a block is looked up in _BLOCK
_PREFIXES = {
    "motion.conv1.": "motion_conv1.",
    "motion.conv2.": "motion_conv2.",
    "prompts.ffn.expand.": "token_tr.mlp.net.0.",
    "prompts.ffn.contract.": "token_tr.mlp.net.3.",
    "fusion.gate_prompt.hidden.": "gate_text.0.",
    "fusion.gate_prompt.output.": "gate_text.2.",
    "fusion.gate_vision.hidden.": "gate_vision.0.",
    "fusion.gate_vision.output.": "gate_vision.2.",
    "fusion.block.": "context2.layers.0.",
    "padm.block.": "context1.layers.0.",
    "w_motion": "mo_alpha1",
    "scale": "scale",
}
_BLOCK = {
    "norm.": "0.norm.",
    "out.": "0.fn.to_out.0.",
    "ffn.expand.": "1.net.0.",
    "ffn.contract.": "1.net.3.",
}
_QKV = ("0.fn.to_q.weight", "0.fn.to_k.weight", "0.fn.to_v.weight")


def reference_names(name: str) -> tuple[str, ...]:
    """Return the authors' names of our parameter ``name``: three for a fused projection, else one or none."""
    for ours, theirs in _PREFIXES.items():
        if not name.startswith(ours):
            continue
        tail = name.removeprefix(ours)
        if not ours.endswith("block."):
            return (theirs + tail,)
        if tail == "qkv.weight":
            return tuple(theirs + part for part in _QKV)
        for part, their_part in _BLOCK.items():
            if tail.startswith(part):
                return (theirs + their_part + tail.removeprefix(part),)
    return ()


def to_reference(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the head's ``tensors`` (parameters or gradients) under the authors' names, in their shapes."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = reference_names(name)
        for their_name, part in zip(
            names, tensor.chunk(len(names)) if len(names) > 1 else [tensor], strict=False
        ):
            if their_name.startswith("motion_conv") and part.dim() == 2:  # ours has taps before channels
                part = part.unflatten(1, (3, -1)).transpose(1, 2)
            out[their_name] = part.contiguous()
    return out


def split_reference(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint into entries of the head and of its visual tower, without wrappers and prefixes.

    Raises ValueError naming the first entry that is not a tensor.
    """
    inner = state.get("model_state_dict", state)
    if not isinstance(inner, Mapping):
        raise ValueError(
            f"model_state_dict: found {type(inner).__name__}; needed a mapping of names to tensors"
        )
    head, tower = {}, {}
    for key, value in inner.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{key}: found {type(value).__name__}; needed a tensor")
        name = str(key).removeprefix("module.")
        if name.startswith("backbone."):
            tower[name.removeprefix("backbone.")] = value
        else:
            head[name] = value
    return head, tower


def reference_dim(state: Mapping[str, Tensor]) -> int:
    """Infer D from the head's entries of :func:`split_reference`; ValueError if they lack the bias."""
    anchor = "motion_conv1.bias"
    if anchor not in state:
        raise ValueError(f"{anchor}: missing from the checkpoint; needed to infer D")
    return state[anchor].numel()


def load_reference(head: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what :func:`split_reference` found into ``head``; ValueError names the entries that do not fit."""
    wanted = to_reference(dict(head.named_parameters()))
    problems = [*_mismatches(state, wanted)]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError("checkpoint does not fit the preset: " + "; ".join(problems[:8]) + more)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parts = [state[n] for n in reference_names(name)]
            if not parts:
                continue
            if parts[0].dim() == 3:
                parts = [p.transpose(1, 2).flatten(1) for p in parts]
            parameter.copy_(torch.cat(parts) if len(parts) > 1 else parts[0])


def _mismatches(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in wanted.items():
        if name not in given:
            yield f"{name}: missing, needed shape {tuple(tensor.shape)}"
        elif given[name].shape != tensor.shape:
            yield f"{name}: found shape {tuple(given[name].shape)}, needed {tuple(tensor.shape)}"
    # parameters of a module that is switched off are known too
    known = (
        "motion_conv",
        "token_tr.mlp.net.",
        "gate_text.",
        "gate_vision.",
        "context1.layers.0.",
        "context2.layers.0.",
    )
    for name in given:
        if name not in wanted and name != "mo_alpha1" and not name.startswith(known):
            yield f"{name}: unknown to CLIP-SPM"
