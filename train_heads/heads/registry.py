"""Heads by name. Listing them imports none of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipspm.settings import near, typed
from clipspm.train_heads.heads.clipspm.config import make_config

if TYPE_CHECKING:
    from clipspm.train_heads.heads.base import Head


@dataclass(frozen=True)
class HeadEntry:
    """A head that can be asked for by name.

    ``about``: one line for people. ``target``: ``module:Class``, imported when the head is built. ``fixed``:
    arguments that make this head of the class. ``settings``: the others, with their types, which are checked
    before PyTorch is loaded. ``trained``: whether it has anything to train.
    """

    about: str
    target: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True

    def load(self) -> "type[Head]":
        """The class of the head."""
        module, _, name = self.target.partition(":")
        found: type[Head] = getattr(import_module(module), name)
        return found


_HERE = "clipspm.train_heads.heads"

HEADS: dict[str, HeadEntry] = {
    "clip-spm": HeadEntry("CLIP-SPM: HSMR, SPM and PADM (arXiv 2512.19036)", f"{_HERE}.clipspm.head:CLIPSPM"),
    "clip-fsar": HeadEntry(
        "class texts with supports, OTAM (arXiv 2303.02982)",
        f"{_HERE}.peers.clip_fsar:CLIPFSAR",
        settings={
            "heads": int,
            "ffn_width": int,
            "dropout": float,
            "ffn_dropout": float,
            "class_text_weight": float,
            "text_scale": float,
            "text_fusion": bool,
            "fusion_b": float,
        },
    ),
    "cpm": HeadEntry(
        "compound prototype matching (arXiv 2207.05515)",
        f"{_HERE}.peers.cpm:CPM",
        settings={
            "m_g": int,
            "m_f": int,
            "heads": int,
            "ffn_width": int,
            "dropout": float,
            "scale": float,
            "focus_weight": float,
        },
    ),
    "trx": HeadEntry(
        "cross-attention of frame tuples (arXiv 2101.06184)",
        f"{_HERE}.peers.trx:TRX",
        settings={"sizes": tuple[int, ...], "out_dim": int, "dropout": float},
    ),
    "semantic-prompt": HeadEntry(
        "class texts prompt the supports (arXiv 2303.14123)",
        f"{_HERE}.peers.semantic_prompt:SemanticPrompt",
        settings={"heads": int, "ffn_width": int, "dropout": float, "scale": float},
    ),
    "otam": HeadEntry(
        "ordered temporal alignment (arXiv 1906.11415)",
        f"{_HERE}.peers.training_free:OTAM",
        settings={"smoothing": float},
        trained=False,
    ),
    "frame-cosine": HeadEntry(
        "cosine of frames at the same index",
        f"{_HERE}.peers.training_free:FrameCosine",
        {"centered": False},
        trained=False,
    ),
    "frame-cosine-centered": HeadEntry(
        "the same on frames minus their clip's mean",
        f"{_HERE}.peers.training_free:FrameCosine",
        {"centered": True},
        trained=False,
    ),
    "prototype": HeadEntry(
        "cosine of mean frames, blind to order", f"{_HERE}.peers.training_free:Prototype", trained=False
    ),
    "zero-shot": HeadEntry(
        "cosine with the class texts, supports unused", f"{_HERE}.peers.training_free:ZeroShot", trained=False
    ),
    "tip-adapter": HeadEntry(
        "texts and a cache of supports (arXiv 2111.03930)",
        f"{_HERE}.peers.training_free:TipAdapter",
        settings={"alpha": float, "beta": float},
        trained=False,
    ),
}


def describe_heads() -> list[dict[str, Any]]:
    """Every head's ``name``, what it is (``about``), and whether it has anything to train (``trained``)."""
    return [{"name": name, "about": head.about, "trained": head.trained} for name, head in HEADS.items()]


def heads_text() -> str:
    """:func:`describe_heads` for a terminal: a heading and a line per head, at most 80 columns wide."""
    lines = [("head", "trains", "what it is")]
    lines += [(name, "yes" if head.trained else "no", head.about) for name, head in HEADS.items()]
    return "\n".join(f"{name:<21}  {trains:<6} {about}" for name, trains, about in lines)


def build_head(
    name: str,
    *,
    dim: int,
    frames: int,
    config: Mapping[str, Any] | None = None,
    layer_dims: Mapping[str, int] | None = None,
) -> "Head":
    """The head ``name`` for features of ``frames`` x ``dim``.

    ``config``: its options; for ``clip-spm`` the fields of :class:`CLIPSPMConfig`, and ``preset`` (hmdb51)
    for the values that are not given. ``layer_dims``: widths of the other cached layers. ValueError in one
    line: an unknown head or option (with close names), or a value that an option cannot have.
    """
    if name not in HEADS:
        raise ValueError(f"head: found {name!r}{near(name, HEADS)}")
    entry, options = HEADS[name], dict(config or {})
    kind: Any = entry.load()
    if name == "clip-spm":
        return kind(dim, make_config(**_with_width(options, layer_dims or {})))  # type: ignore[no-any-return]
    head: Head = kind(dim=dim, frames=frames, **entry.fixed, **_own_settings(name, options))
    return head


def check_settings(name: str, options: Mapping[str, Any]) -> None:
    """ValueError for ``options`` that the head ``name`` does not have, or not of this type."""
    if name == "clip-spm":
        width = {"shallow_dim": 1} if options.get("shallow_layer") is not None else {}
        make_config(**{**width, **options})
    else:
        _own_settings(name, options)


def _own_settings(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    known = HEADS[name].settings
    if options and not known:
        raise ValueError(f"{name} has no settings, found {next(iter(options))!r}")
    return typed(options, known)


def _with_width(options: dict[str, Any], layer_dims: Mapping[str, int]) -> dict[str, Any]:
    """``shallow_dim`` beside a ``shallow_layer`` that is cached."""
    layer = options.get("shallow_layer")
    if layer is None or options.get("shallow_dim") is not None:
        return options
    layer = str(layer)  # YAML reads 3 as a number
    if layer not in layer_dims:
        cached = ", ".join(layer_dims) or "none besides the last"
        raise ValueError(
            f"shallow_layer: found {layer!r}; needed a cached layer ({cached}): extract with "
            f"--layers {','.join([*layer_dims, layer, 'final'])} to have it"
        )
    return {**options, "shallow_layer": layer, "shallow_dim": layer_dims[layer]}
