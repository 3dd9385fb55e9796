"""The heads: CLIP-SPM, its peers, and the contract they share."""

from clipspm.train_heads.heads.base import BaseClasses, Head, HeadOutput
from clipspm.train_heads.heads.clipspm import CLIPSPM
from clipspm.train_heads.heads.config import CLIPSPMConfig, load_preset
from clipspm.train_heads.heads.otam import otam_distance

__all__ = ["CLIPSPM", "BaseClasses", "CLIPSPMConfig", "Head", "HeadOutput", "load_preset", "otam_distance"]
