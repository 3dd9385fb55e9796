"""The demo data sets: videos of drawn shapes, their class splits, and a tiny CLIP that encodes them.

Nothing here imports torch: rendering needs only numpy and PyAV, and the encoder is a name that open_clip
loads.
"""

from pathlib import Path

from .actions import CLASSES, PAIRS
from .render import clip_files, render_demo
from .worlds import DEMO_SPLITS, MOTION, WORLDS, World, demo_splits, world_of

__all__ = [
    "CLASSES",
    "DEMO_SPLITS",
    "MOTION",
    "PAIRS",
    "WORLDS",
    "World",
    "clip_files",
    "demo_splits",
    "render_demo",
    "tiny_clip_source",
    "world_of",
]


def tiny_clip_source() -> str:
    """open_clip's name of the encoder in this package, ``local-dir:<absolute folder>``.

    ``open_clip.create_model_and_transforms`` and ``open_clip.get_tokenizer`` take it, from any working
    directory.
    """
    return f"local-dir:{Path(__file__).resolve().parent / 'tiny_clip'}"
