"""Heads by name: built-in ones, those of other packages, and any class by its path.

Another package registers heads under the entry point ``clipspm.heads`` (name = ``module:Class``). Listing
heads imports none of them.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, get_type_hints

from clipspm.settings import finite, near, typed
from clipspm.train_heads.heads.clipspm.config import make_config

if TYPE_CHECKING:
    from clipspm.train_heads.heads.base import Head

#: the entry point under which other packages register heads
GROUP = "clipspm.heads"
#: arguments of a head's class that are not settings
_GIVEN = ("dim", "frames", "layer_dims")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class HeadMissing(ValueError):
    """A head that another package or module should bring, which is not here."""


@dataclass(frozen=True)
class HeadEntry:
    """A head that can be asked for by name.

    ``about``: one line for people. ``target``: ``module:Class``, imported when the head is built. ``fixed``:
    arguments of the class that define this head. ``settings``: its other arguments and their types, to check
    them before PyTorch is loaded (None: ask the class, afterwards). ``trained``: whether it has anything to
    train. ``texts``: whether it needs class texts (None: its settings or its class say).
    """

    about: str
    target: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = field(default_factory=dict)
    trained: bool = True
    texts: bool | None = None

    def load(self) -> "type[Head]":
        """Import the class of the head; ValueError if there is none, or it is not a :class:`Head`."""
        from clipspm.train_heads.heads.base import Head

        module, _, name = self.target.partition(":")
        try:
            found: Any = getattr(import_module(module), name, None)
        except Exception as error:  # whatever code of others raises
            raise HeadMissing(
                f"head {self.target}: cannot be imported ({type(error).__name__}: {error}); is its package "
                "installed, or its folder on PYTHONPATH?"
            ) from error
        if not (isinstance(found, type) and issubclass(found, Head)):
            raise ValueError(f"head {self.target}: found {found!r}; needed a subclass of clipspm's Head")
        return found


_HERE = "clipspm.train_heads.heads"
#: settings of heads that have an attention block
_BLOCK: dict[str, Any] = {"heads": int, "ffn_width": int, "dropout": float}
#: and of heads that score texts as the encoder was trained to
_SCALE: dict[str, Any] = {"text_scale": float, "text_bias": float}

HEADS: dict[str, HeadEntry] = {
    "clip-spm": HeadEntry("CLIP-SPM: HSMR, SPM and PADM (arXiv 2512.19036)", f"{_HERE}.clipspm.head:CLIPSPM"),
    "evidence": HeadEntry(
        "look, motion, texts of frozen features",
        f"{_HERE}.pool.head:EvidencePool",
        {"pool": True, "hsmr": False, "spm": False, "padm": False},
        settings={
            **dict.fromkeys(("look", "still", "move", "drift", "text"), bool),
            "without": tuple[str, ...],
        },
        trained=False,
    ),
    "clip-fsar": HeadEntry(
        "class texts with supports, OTAM (arXiv 2303.02982)",
        f"{_HERE}.peers.clip_fsar:CLIPFSAR",
        settings=_BLOCK
        | dict.fromkeys(("ffn_dropout", "class_text_weight", "text_scale", "fusion_b"), float)
        | {"text_fusion": bool},
        texts=True,
    ),
    "cpm": HeadEntry(
        "compound prototype matching (arXiv 2207.05515)",
        f"{_HERE}.peers.cpm:CPM",
        settings=_BLOCK | {"m_g": int, "m_f": int, "scale": float, "focus_weight": float},
        texts=False,
    ),
    "trx": HeadEntry(
        "cross-attention of frame tuples (arXiv 2101.06184)",
        f"{_HERE}.peers.trx:TRX",
        settings={"sizes": tuple[int, ...], "out_dim": int, "dropout": float},
        texts=False,
    ),
    "semantic-prompt": HeadEntry(
        "class texts prompt the supports (arXiv 2303.14123)",
        f"{_HERE}.peers.semantic_prompt:SemanticPrompt",
        settings=_BLOCK | {"scale": float},
        texts=True,
    ),
    "otam": HeadEntry(
        "ordered temporal alignment (arXiv 1906.11415)",
        f"{_HERE}.peers.training_free:OTAM",
        settings={"smoothing": float},
        trained=False,
        texts=False,
    ),
    "frame-cosine": HeadEntry(
        "cosine of frames at the same index",
        f"{_HERE}.peers.training_free:FrameCosine",
        {"centered": False},
        trained=False,
        texts=False,
    ),
    "frame-cosine-centered": HeadEntry(
        "cosine of frames minus their clip's mean",
        f"{_HERE}.peers.training_free:FrameCosine",
        {"centered": True},
        trained=False,
        texts=False,
    ),
    "prototype": HeadEntry(
        "cosine of mean frames, blind to order",
        f"{_HERE}.peers.training_free:Prototype",
        trained=False,
        texts=False,
    ),
    "zero-shot": HeadEntry(
        "cosine with the class texts, supports unused",
        f"{_HERE}.peers.training_free:ZeroShot",
        settings=_SCALE,
        trained=False,
        texts=True,
    ),
    "tip-adapter": HeadEntry(
        "texts and a cache of supports (arXiv 2111.03930)",
        f"{_HERE}.peers.training_free:TipAdapter",
        settings={"alpha": float, "beta": float, **_SCALE},
        trained=False,
        texts=True,
    ),
}


#: heads whose settings are those of :class:`CLIPSPMConfig`
OF_CLIPSPM = ("clip-spm", "evidence")


def known_heads() -> dict[str, HeadEntry]:
    """Return all named heads: the built-in ones, then those of other packages."""
    return HEADS | {name: entry for name, entry in _from_packages().items() if name not in HEADS}


def head_entry(name: str) -> HeadEntry:
    """Return the head called ``name``, or at a path ``package.module:Class``; ValueError names close ones."""
    if name in HEADS:
        return HEADS[name]
    if _PATH.fullmatch(name):
        return HeadEntry("a class of your own", name, settings=None)
    known = known_heads()
    if name not in known:
        raise ValueError(f"unknown head {name!r}{near(name, known)}")
    return known[name]


@cache
def _from_packages() -> dict[str, HeadEntry]:
    try:
        points = tuple(entry_points(group=GROUP))
    except Exception:  # a package with broken metadata
        points = ()
    return {
        point.name: HeadEntry(
            f"of the package {point.dist.name}" if point.dist and point.dist.name else "of another package",
            f"{point.module}:{point.attr}",
            settings=None,
        )
        for point in points
    }


def describe_heads() -> list[dict[str, Any]]:
    """Return the ``name`` of every head, ``about`` in one line, and ``trained``: whether it is trainable."""
    known = known_heads()
    return [{"name": name, "about": head.about, "trained": head.trained} for name, head in known.items()]


def heads_text() -> str:
    """Format :func:`describe_heads` for a terminal: a heading and a line per head, at most 80 columns."""
    lines = [("head", "trains", "what it is")]
    lines += [(name, "yes" if head.trained else "no", head.about) for name, head in known_heads().items()]
    return "\n".join(f"{name:<21}  {trains:<6} {about}" for name, trains, about in lines)


def build_head(
    name: str,
    *,
    dim: int,
    frames: int,
    config: Mapping[str, Any] | None = None,
    layer_dims: Mapping[str, int] | None = None,
) -> "Head":
    """Build the head ``name`` for features of ``frames`` x ``dim``.

    ``config``: its settings, the arguments of its class; for ``clip-spm`` the fields of
    :class:`CLIPSPMConfig`, and ``preset`` (hmdb51) for those that are not given. ``layer_dims``: widths of
    the other cached layers. Raises a one-line ValueError for an unknown head or setting (with close names),
    or an invalid value.
    """
    entry, settings = head_entry(name), dict(config or {})
    if name in OF_CLIPSPM:
        check_settings(name, settings)
        made = make_config(**settings, **entry.fixed)
        clipspm: Callable[..., Head] = (HEADS["evidence"] if made.pool else entry).load()
        return clipspm(dim, made, layer_dims=layer_dims)
    kind: Callable[..., Head] = entry.load()
    arguments = inspect.signature(kind).parameters
    own = _settings_of(entry.load()) if entry.settings is None else entry.settings
    passed_on = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    shape = {"dim": dim, "frames": frames, "layer_dims": layer_dims or {}}
    given = {key: value for key, value in shape.items() if passed_on or key in arguments}
    head = kind(**given, **entry.fixed, **_typed(name, settings, own))
    for layer in head.layers:
        head.width_of(layer, "layers")
    return head


def _settings_of(kind: "type[Head]") -> dict[str, Any]:
    """Return the settings of a head of others, with their types where its annotations can be read."""
    try:
        hints = get_type_hints(kind.__init__)
    except Exception:  # names that only a type checker imports
        hints = {}
    arguments = inspect.signature(kind).parameters.values()
    named = (a.name for a in arguments if a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL))
    return {name: hints.get(name, Any) for name in named if name not in _GIVEN}


def check_settings(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for ``options`` that the head ``name`` does not have, or of another type."""
    if name == "clip-spm":
        make_config(**options)
    elif (own := head_entry(name).settings) is not None:
        _typed(name, options, own)


def _typed(name: str, options: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    if options and not own:
        raise ValueError(f"{name} has no settings, found {next(iter(options))!r}")
    return finite(typed(options, own))
