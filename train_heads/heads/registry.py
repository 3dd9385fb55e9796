"""Heads by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.clipspm import CLIPSPM
from clipspm.train_heads.heads.config import CLIPSPMConfig, load_preset

Builder = Callable[[int, int, dict[str, Any], Mapping[str, int]], Head]


def _clip_spm(dim: int, frames: int, config: dict[str, Any], layer_dims: Mapping[str, int]) -> Head:
    layer = config.get("shallow_layer")
    if layer is not None and config.get("shallow_dim") is None:
        if layer not in layer_dims:
            raise ValueError(
                f"shallow_layer: found {layer!r}; needed a cached layer: {', '.join(layer_dims) or 'none is cached'}"
            )
        config["shallow_dim"] = layer_dims[layer]
    return CLIPSPM(dim, load_preset(config.pop("preset", "hmdb51"), **config))


#: name -> how to build it from (D, T, config, widths of the cached layers)
HEADS: dict[str, Builder] = {"clip-spm": _clip_spm}


def build_head(
    name: str,
    *,
    dim: int,
    frames: int,
    config: Mapping[str, Any] | None = None,
    layer_dims: Mapping[str, int] | None = None,
) -> Head:
    """The head ``name`` for features of ``frames`` x ``dim``.

    ``config``: its options; for ``clip-spm`` the fields of :class:`CLIPSPMConfig` and ``preset``.
    ``layer_dims``: widths of the other cached layers. ValueError lists the heads, or the options of this one.
    """
    if name not in HEADS:
        raise ValueError(f"head: found {name!r}; needed one of {', '.join(HEADS)}")
    return HEADS[name](dim, frames, dict(config or {}), layer_dims or {})
