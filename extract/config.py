"""What an extraction is asked for."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from clipspm.cache.spec import FINAL, Format
from clipspm.engines.base import EngineConfig, parse_devices
from clipspm.errors import UsageError
from clipspm.extract.datasets import check_name

Precision = Literal["auto", "fp32", "fp16", "bf16"]
ResizeOn = Literal["auto", "decoders", "encoder"]
PixelNorm = Literal["model", "none"]
StoreDtype = Literal["fp16", "fp32"]

_MOST_THREADS = 1024
#: more is none of a video, and no cache would hold it
_MOST_FRAMES = 2**16
#: GiB that a decoding process may take: the same everywhere, as what fails must not depend on it
MEMORY = 4.0
#: a worker that does nothing takes about 0.1
_LEAST_MEMORY = 0.25
_CHOICES: dict[str, Any] = {
    "precision": Precision,
    "pixel_norm": PixelNorm,
    "resize_on": ResizeOn,
    "format": Format,
    "store_dtype": StoreDtype,
}


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """One extraction. Sizes in pixels, times in seconds, memory in GiB.

    ``device``: one, or several joined by commas, each with an encoder of its own. ``threads``: of the encoder
    on a CPU (none: all cores); pinned, the numbers do not depend on how many processes share the machine.
    ``resize_on``: the decoders' cores (Pillow) or the encoder's device (torch); ``auto``: there, on a GPU.
    ``max_failures``: a number of videos, or like ``5%`` a share of them, beyond which the extraction stops.
    """

    dataset: str
    videos: Path | None = None
    splits: Path | None = None
    split_files: Path | None = None
    model: str | None = None
    pretrained: str | None = None
    precision: Precision = "auto"
    pixel_norm: PixelNorm = "model"
    device: str | None = None
    threads: int | None = None
    layers: str = "final"
    prompts: str = "photo"
    frames: int = 8
    views: int = 1
    resize: int | None = None
    resize_on: ResizeOn = "auto"
    min_frames: int = 1
    format: Format = "zarr"
    store_dtype: StoreDtype = "fp16"
    out: Path | None = None
    limit: int | None = None
    workers: int | None = None
    batch_size: int = 64
    shard_size: int = 256
    decode_timeout: float = 60.0
    worker_memory: float = MEMORY
    retry_failed: bool = False
    max_failures: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        check_name(self.dataset)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {getattr(self, name)!r}: choose one of {known}")
        parse_layers(self.layers)
        for name in ("frames", "views", "batch_size", "shard_size", "min_frames"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("frames", "views"):
            if getattr(self, name) > _MOST_FRAMES:
                raise UsageError(f"--{name} must be at most {_MOST_FRAMES}, got {getattr(self, name)}")
        for name in ("limit", "workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if not self.decode_timeout > 0:
            raise UsageError(f"--decode-timeout must be more than 0 seconds, got {self.decode_timeout:g}")
        if not _LEAST_MEMORY <= self.worker_memory < float("inf"):
            raise UsageError(
                f"--worker-memory must be at least {_LEAST_MEMORY:g} (GiB), got {self.worker_memory:g}"
            )
        if self.threads is not None and self.threads > _MOST_THREADS:
            raise UsageError(f"--threads is at most {_MOST_THREADS}, got {self.threads}")
        if self.out is not None and (not self.out.name or "\n" in self.out.name):
            raise UsageError(f"--out {str(self.out)!r} names no cache: give a folder (or .h5 file) to write")
        self.most_failures(0)
        replace(self.engine, devices=self.devices)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices named by ``device``."""
        return parse_devices(self.device)

    def most_failures(self, videos: int) -> int | None:
        """How many of ``videos`` may fail; None: all of them."""
        text = (self.max_failures or "").strip()
        if not text:
            return None
        share = text.endswith("%")
        try:
            number = float(text.removesuffix("%"))
            if not 0 <= number < float("inf") or (share and number > 100) or (not share and number % 1):
                raise ValueError
        except ValueError as error:
            raise UsageError(
                f"--max-failures {self.max_failures!r}: expected a number of videos, or a share like 5%"
            ) from error
        return int(videos * number / 100) if share else int(number)


def parse_layers(text: str) -> tuple[str, ...]:
    """``"3,7,11,final"`` -> layer names, numbers ascending, ``final`` always included and last."""
    numbers = set()
    for part in text.split(","):
        name = part.strip()
        if name == FINAL:
            continue
        if not (name.isascii() and name.isdigit() and len(name) < 6):
            raise UsageError(f"--layers {text!r}: {name!r} is neither a layer number nor 'final'")
        numbers.add(int(name))
    return (*(str(n) for n in sorted(numbers)), FINAL)
