"""Settings of CLIP-SPM, and presets with the authors' values."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args, get_type_hints

import yaml

from clipspm.settings import finite, typed

MatcherName = Literal["otam", "bimhm", "mean-cosine"]
MatchingInput = Literal["raw", "refined-centered"]

PRESETS = ("hmdb51", "ucf101", "kinetics100", "ssv2-full", "ssv2-small")
_ALIASES = {"kinetics": "kinetics100"}


@dataclass(frozen=True, kw_only=True)
class CLIPSPMConfig:
    """Defaults are the released code's behaviour with its HMDB51 numbers (the ``official`` recipe)."""

    # The three modules. Without PADM the logits are those of D0 and D1; without SPM, D1 and PADM see the
    # frames themselves; without HSMR there is no motion term and no D0, and ``matching_input`` is raw.
    hsmr: bool = True
    spm: bool = True
    padm: bool = True

    # Values that presets set.
    rho_v: float = 0.5  #: hidden width of the frames' gate, as a multiple of D
    rho_t: float = 1.5  #: hidden width of the prompt's gate, as a multiple of D
    slope: float = 0.0025  #: negative slope of the gates' LeakyReLU
    alpha: float = 0.2  #: weight of the gated prompt in the fused frames
    w_c: float = 0.54  #: weight of queries in L_consist; supports have 1 - w_c
    w_text: float = 0.07  #: weight of queries in L_text; supports have 0.5 - w_text

    heads: int = 8
    head_width: int = 256
    ffn_width: int = 2048
    dropout: float = 0.2  #: after the attention's output projection
    ffn_dropout: float = 0.05  #: twice in each feed-forward network
    zero_init: bool = False  #: attention and feed-forward outputs of the blocks start at zero

    # The default head (:mod:`..pool.head`): evidence that needs no training beneath the three modules.
    pool: bool = False
    look: bool = True
    still: bool = True
    move: bool = True
    drift: bool = True
    text: bool = True
    without: tuple[str, ...] = ()  #: cached layers that the pool leaves out

    consistency: bool = False  #: L_text and L_consist, as in the paper; the released code has them off

    # Weights of the distances in the logits.
    motion_weight: float = 0.0  #: D0, with HSMR: moving frames of prototypes to those of queries
    d1_weight: float = 0.5  #: D1: SPM's prototypes to queries
    d2_weight: float = 1.0  #: D2: PADM's prototypes to queries
    d3_weight: float = 1.0  #: D3: PADM's class tokens to the anchor
    matcher: MatcherName = "otam"
    logit_scale: float = 1.0  #: factor of the matching logits
    learn_logit_scale: bool = False  #: learn its logarithm

    # Variants.
    shallow_layer: str | None = None  #: cached layer that the shallow motion comes from, instead of the last
    matching_input: MatchingInput = "raw"  #: frames that SPM, PADM and the matching see
    motion_taps: int = 0  #: taps of a learned filter over time of the moving frames, odd; 0: none
    position: bool = False  #: sinusoidal positions (times 0.1) on the frames that enter the first block

    def __post_init__(self) -> None:
        choices = {"matching_input": get_args(MatchingInput), "matcher": get_args(MatcherName)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: found {getattr(self, name)!r}; needed one of {', '.join(allowed)}")
        ranges: dict[str, tuple[float, float]] = {
            "w_c": (0, 1),
            "w_text": (0, 0.5),
            "dropout": (0, 1),
            "ffn_dropout": (0, 1),
            "motion_weight": (0, float("inf")),
            "d1_weight": (0, float("inf")),
            "d2_weight": (0, float("inf")),
            "d3_weight": (0, float("inf")),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: found {getattr(self, name)}; needed {low} to {high}")
        for name in ("rho_v", "rho_t", "heads", "head_width", "ffn_width", "logit_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}; needed a positive number")
        if self.motion_taps and (self.motion_taps < 3 or self.motion_taps % 2 == 0):
            raise ValueError(f"motion_taps: found {self.motion_taps}; needed 0 or an odd number from 3")

    @property
    def refines_what_moves(self) -> bool:
        """Whether HSMR refines centred frames and the matching sees those."""
        return self.hsmr and self.matching_input == "refined-centered"


@cache
def _preset_values(name: str) -> dict[str, Any]:
    name = _ALIASES.get(name, name)
    if name not in PRESETS:
        raise ValueError(f"preset: found {name!r}; needed one of {', '.join(PRESETS)}")
    path = files("clipspm.train_heads.heads.clipspm") / "presets" / f"{name}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def load_preset(name: str) -> dict[str, Any]:
    """Return the authors' values of :class:`CLIPSPMConfig` for a data set; ValueError lists the presets."""
    return dict(_preset_values(name))


def make_config(preset: str = "hmdb51", **overrides: Any) -> CLIPSPMConfig:
    """Return the configuration of ``preset`` with ``overrides``.

    Raises a one-line ValueError for an unknown preset or field, or an invalid value.
    """
    given = finite(typed(overrides, get_type_hints(CLIPSPMConfig)))
    return CLIPSPMConfig(**(load_preset(preset) | given))
