"""What an extraction is asked for."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from clipspm.cache.spec import Format
from clipspm.engines.base import MOST_THREADS, EngineConfig, parse_devices
from clipspm.errors import UsageError
from clipspm.extract.layers import AUTO, parse_layers, parse_tokens
from clipspm.options import option, settle

Precision = Literal["auto", "fp32", "fp16", "bf16"]
ResizeOn = Literal["auto", "decoders", "encoder"]
Decoder = Literal["auto", "pyav", "decord", "torchcodec"]
PixelNorm = Literal["model", "none"]
StoreDtype = Literal["fp16", "fp32"]

SPLITS_HELP = 'JSON or TOML: {"train": [class, ...], "val": [...], "test": [...]}.'
SPLIT_FILES_HELP = "Folder with a benchmark's video lists as they circulate; the format is detected."

#: more is none of a video, and no cache would hold it
_MOST_FRAMES = 2**16
#: GiB that a decoding process may take: the same everywhere, as what fails must not depend on it
MEMORY = 4.0
#: a worker that does nothing takes about 0.1
_LEAST_MEMORY = 0.25


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """One extraction. Sizes in pixels, times in seconds, memory in GiB.

    ``device``: one, or several joined by commas, each with an encoder of its own. ``threads``: of the
    encoder on a CPU (none: all cores); pinned, the numbers do not depend on how many processes share the
    machine. ``layers``: names of :mod:`.layers` joined by commas; none: ``auto``, or those of a cache that
    is extended. ``decoder``: what each video was read with is in its record. ``tokens``: what ``auto``
    takes of each block of a ViT. ``descriptions``: sentences for prompts. ``resize_on``: the decoders'
    cores (Pillow) or the encoder's device (torch); ``auto``: there, on a GPU. ``max_failures``: a number of
    videos, or like ``5%`` a share of them, beyond which the extraction stops.
    """

    dataset: str = option(
        help="hmdb51, ucf101, kinetics100, ssv2-full, ssv2-small, folder, manifest, demo or demo-WORLD.",
        panel="Data",
    )
    videos: Path | None = option(
        None, "Where the videos are.", "Data", shown="$CLIPSPM_DATA/DATASET, then ./data/DATASET"
    )
    splits: Path | None = option(None, SPLITS_HELP, "Data")
    split_files: Path | None = option(None, SPLIT_FILES_HELP, "Data")
    limit: int | None = option(None, "At most so many videos, evenly over the classes.", "Data", min=1)
    min_frames: int = option(1, "Refuse videos with fewer frames.", "Data", min=1)
    frames: int = option(8, "Frames per video.", "Frames", min=1, max=_MOST_FRAMES)
    views: int = option(
        1, "Views per video: the centre crop, then random ones.", "Frames", min=1, max=_MOST_FRAMES
    )
    resize: int | None = option(
        None, "Short side in pixels before the crop.", "Frames", shown="8/7 of it, or whole frames, by model"
    )
    resize_on: ResizeOn = option(
        "auto", "decoders (Pillow), or the encoder's device (torch). auto: there if it is a GPU.", "Frames"
    )
    model: str | None = option(
        None,
        "open_clip architecture, local-dir:FOLDER, hf-hub:ORG/NAME or timm:NAME; see clipspm encoders.",
        "Encoder",
        shown="ViT-B-16-quickgelu",
    )
    pretrained: str | None = option(None, "Tag, weights file or local-dir:FOLDER.", "Encoder", shown="openai")
    layers: str | None = option(
        None,
        "Layers to cache besides the final embedding: auto, or like 8,11; of a ViT also 8:cls, 8:mean.",
        "Encoder",
        shown="auto",
    )
    tokens: str | None = option(
        None, "What --layers auto takes of each block of a ViT.", "Encoder", shown="cls,mean"
    )
    prompts: str | None = option(
        None, "photo, actionclip16, or a file of templates.", "Encoder", shown="photo"
    )
    descriptions: Path | None = option(
        None, "JSON {class: sentence or [sentences]}, in place of prompts.", "Encoder"
    )
    precision: Precision = option("auto", "auto: the fastest within 1e-2 of fp32 on this device.", "Encoder")
    pixel_norm: PixelNorm = option(
        "model", "Normalise pixels as the model says, or leave them in [0, 1].", "Encoder"
    )
    batch_size: int = option(64, "Frames per call of the encoder.", "Encoder", min=1)
    out: Path | None = option(None, "The cache to write.", "Output", shown="under $CLIPSPM_HOME")
    format: Format = option("zarr", "Container of the cache.", "Output")
    store_dtype: StoreDtype = option("fp16", "Number format in the cache.", "Output")
    shard_size: int = option(256, "Videos per shard: what a kill can lose.", "Output", min=1)
    dry_run: bool = option(False, "Only say what would be done, or refused.", "Output")
    overwrite: bool = option(False, "Start the cache again.", "Output")
    retry_failed: bool = option(False, "Try videos again that could not be read before.", "Output")
    max_failures: str | None = option(
        None, "Stop when more videos (or per cent of them) fail.", "Output", metavar="N|P%"
    )
    device: str | None = option(
        None, "cpu, cuda, or several like cuda:0,cuda:1.", "Machine", shown="a GPU if there is one"
    )
    threads: int | None = option(
        None, "Threads of the encoder on a CPU.", "Machine", min=1, max=MOST_THREADS, shown="all cores"
    )
    workers: int | None = option(
        None, "Decoding processes per encoder.", "Machine", min=1, shown="the cores, or 1 by engine"
    )
    decoder: Decoder = option(
        "auto",
        "Reads frames, where a file's index can be trusted; elsewhere PyAV, from the start.",
        "Machine",
    )
    decode_timeout: float = option(60.0, "Seconds that one video may take.", "Machine", above=0)
    worker_memory: float = option(
        MEMORY, "GiB that a decoding process may take (Linux).", "Machine", min=_LEAST_MEMORY
    )
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        from clipspm.extract.datasets import check_name  # the help of the command line needs none of it

        settle(self)
        check_name(self.dataset)
        if self.tokens is not None:
            parse_tokens(self.tokens)
        if AUTO not in parse_layers(AUTO if self.layers is None else self.layers) and self.tokens is not None:
            raise UsageError(
                f"--tokens {self.tokens} is for --layers auto; layers named one by one say it themselves, "
                "like --layers 8:cls,8:mean,final"
            )
        if self.descriptions is not None and self.prompts is not None:
            raise UsageError("--descriptions stand in place of --prompts: give one of them")
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
