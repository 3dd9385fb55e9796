"""The heads: CLIP-SPM, its peers, and the contract they share."""

from clipspm.train_heads.heads.base import BaseClasses, Head, HeadOutput
from clipspm.train_heads.heads.clipspm import CLIPSPM
from clipspm.train_heads.heads.config import CLIPSPMConfig, load_preset
from clipspm.train_heads.heads.otam import otam_distance
from clipspm.train_heads.heads.registry import HEADS, build_head

__all__ = [
    "CLIPSPM",
    "HEADS",
    "BaseClasses",
    "CLIPSPMConfig",
    "Head",
    "HeadOutput",
    "build_head",
    "load_preset",
    "otam_distance",
]
