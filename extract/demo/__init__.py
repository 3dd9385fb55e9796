"""The embedded demo: real video files of drawn shapes, their class splits, and a tiny CLIP to read them.

Nothing here imports torch: rendering needs numpy and PyAV only, and the encoder is named by a string
that open_clip loads.
"""

from pathlib import Path

from .actions import CLASSES, PAIRS
from .render import clip_files, render_demo
from .splits import DEMO_SPLITS, demo_splits

__all__ = ["CLASSES", "DEMO_SPLITS", "PAIRS", "clip_files", "demo_splits", "render_demo", "tiny_clip_source"]


def tiny_clip_source() -> str:
    """The encoder that ships with the package, as open_clip names it: ``local-dir:<absolute folder>``.

    ``open_clip.create_model_and_transforms`` and ``open_clip.get_tokenizer`` both take it, from any
    working directory.
    """
    return f"local-dir:{Path(__file__).resolve().parent / 'tiny_clip'}"
