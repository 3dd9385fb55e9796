"""Stage one: video files and class names in, cached encoder features out.

Importing this package loads no deep-learning library, so that decode workers stay small;
``extract`` and ``Encoder`` are resolved on first use.
"""

from typing import TYPE_CHECKING, Any

from clipspm.extract.decode import DecodeError, Frames, read_frames, segment_middles

if TYPE_CHECKING:
    from clipspm.extract.encoder import Encoder
    from clipspm.extract.pipeline import ExtractConfig, extract

__all__ = ["DecodeError", "Encoder", "ExtractConfig", "Frames", "extract", "read_frames", "segment_middles"]


def __getattr__(name: str) -> Any:
    if name in {"extract", "ExtractConfig"}:
        from clipspm.extract import pipeline

        return getattr(pipeline, name)
    if name == "Encoder":
        from clipspm.extract.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
