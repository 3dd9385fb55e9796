"""Heads by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.clip_fsar import CLIPFSAR
from clipspm.train_heads.heads.clipspm import CLIPSPM
from clipspm.train_heads.heads.config import make_config
from clipspm.train_heads.heads.cpm import CPM
from clipspm.train_heads.heads.semantic_prompt import SemanticPrompt
from clipspm.train_heads.heads.training_free import OTAM, FrameCosine, Prototype, TipAdapter, ZeroShot
from clipspm.train_heads.heads.trx import TRX

#: (D, T, options, widths of the other cached layers) -> head
Builder = Callable[[int, int, dict[str, Any], Mapping[str, int]], Head]


def _clip_spm(dim: int, frames: int, config: dict[str, Any], layer_dims: Mapping[str, int]) -> Head:
    layer = config.get("shallow_layer")
    if layer is not None:
        layer = config["shallow_layer"] = str(layer)  # YAML reads 3 as a number
    if layer is not None and config.get("shallow_dim") is None:
        if layer not in layer_dims:
            cached = ", ".join(layer_dims) or "none besides the last"
            raise ValueError(f"shallow_layer: found {layer!r}; needed a cached layer ({cached})")
        config["shallow_dim"] = layer_dims[layer]
    return CLIPSPM(dim, make_config(**config))


def _plain(name: str, kind: Callable[..., Head], **fixed: Any) -> Builder:
    """A builder for a class whose keyword-only parameters besides ``dim`` and ``frames`` are its options."""
    known = [p for p in inspect.signature(kind).parameters if p not in ("dim", "frames", *fixed)]

    def build(dim: int, frames: int, config: dict[str, Any], layer_dims: Mapping[str, int]) -> Head:
        unknown = [key for key in config if key not in known]
        if unknown:
            options = ", ".join(known) or "nothing, it has no options"
            raise ValueError(f"config of {name}: found {unknown[0]!r}; needed one of {options}")
        return kind(dim=dim, frames=frames, **fixed, **config)

    return build


#: name -> how to build it
HEADS: dict[str, Builder] = {
    "clip-spm": _clip_spm,
    "zero-shot": _plain("zero-shot", ZeroShot),
    "prototype": _plain("prototype", Prototype),
    "frame-cosine": _plain("frame-cosine", FrameCosine, centered=False),
    "frame-cosine-centered": _plain("frame-cosine-centered", FrameCosine, centered=True),
    "otam": _plain("otam", OTAM),
    "tip-adapter": _plain("tip-adapter", TipAdapter),
    "clip-fsar": _plain("clip-fsar", CLIPFSAR),
    "trx": _plain("trx", TRX),
    "cpm": _plain("cpm", CPM),
    "semantic-prompt": _plain("semantic-prompt", SemanticPrompt),
}


def build_head(
    name: str,
    *,
    dim: int,
    frames: int,
    config: Mapping[str, Any] | None = None,
    layer_dims: Mapping[str, int] | None = None,
) -> Head:
    """The head ``name`` for features of ``frames`` x ``dim``.

    ``config``: its options; for ``clip-spm`` the fields of :class:`CLIPSPMConfig`, and ``preset`` (hmdb51)
    for the values that are not given. ``layer_dims``: widths of the other cached layers. ValueError lists the
    heads, or the options of this one.
    """
    if name not in HEADS:
        raise ValueError(f"head: found {name!r}; needed one of {', '.join(HEADS)}")
    return HEADS[name](dim, frames, dict(config or {}), layer_dims or {})
