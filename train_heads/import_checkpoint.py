"""Import the authors' checkpoints as runs that can be scored, without running anything in them."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clipspm.cache.checked import file_digest
from clipspm.cache.disk import DiskFull, reading
from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.config import TrainConfig, resolve_config
from clipspm.train_heads.heads.clipspm.head import CLIPSPM
from clipspm.train_heads.heads.clipspm.reference import split_reference
from clipspm.train_heads.runs import CONFIG, HeadShape, Run, holds_run

#: frames per video in the authors' code; the head itself takes any number
REFERENCE_FRAMES = 8


@dataclass(frozen=True)
class ImportedHead:
    """The ``head`` of a checkpoint, and the visual ``tower`` beside it (empty if it holds none)."""

    file: Path
    preset: str
    head: CLIPSPM = field(repr=False)
    tower: dict[str, Tensor] = field(repr=False)
    config: TrainConfig = field(repr=False)

    def save(self, path: str | Path, encoder: Mapping[str, Any] | None = None) -> Run:
        """Write a run directory, or nothing if the disk is full; ``encoder``: facts about the tower."""
        source = {"file": self.file.name, "sha256": file_digest(self.file), "preset": self.preset}
        made = not Path(path).exists()
        try:
            run = Run.create(path, self.config, HeadShape(self.head.dim, REFERENCE_FRAMES, {}), None)
            run.save_weights("last", self.head, imported=self.file.name)
            run.end(selection="imported", imported={**source, "encoder": encoder})
        except DiskFull as full:
            for name in (CONFIG, "last.safetensors", ".results.lock"):
                Path(path, name).unlink(missing_ok=True)
            if made:
                Path(path).rmdir()
            raise full.but("run the same command again") from full
        return run


def read_checkpoint(file: str | Path, preset: str, out: str | Path | None = None) -> ImportedHead:
    """Read the authors' ``file`` (``torch.save`` or ``.safetensors``) as the head of ``preset``.

    Only tensors and plain values are unpickled. Raises :class:`ClipspmError` for a file that holds anything
    else, or whose parameters do not fit (it names them), and :class:`UsageError` if ``out`` holds a run
    already.
    """
    file = Path(file)
    config = resolve_config(recipe="official", preset=preset)
    if out is not None and holds_run(Path(out)):
        raise UsageError(f"{out} already holds a run: name another --out")
    if not os.path.lexists(file):
        raise ClipspmError(f"there is no checkpoint {file}")
    with reading(file, f"(preset {preset}) is not a checkpoint of the head"):
        parameters, tower = split_reference(_load(file))
        for name, tensor in parameters.items():
            _check_tensor(name, tensor)
        head = CLIPSPM.from_reference(parameters, **config.head_config)
    return ImportedHead(file, preset, head.eval(), tower, config)


def _check_tensor(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is dense, floating-point, finite and stored in full."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        raise ValueError(f"{name} is not a plain dense tensor")
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected floating point")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} has a shape larger than its stored values")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds values that are not finite")


def _load(file: Path) -> Mapping[str, Any]:
    with reading(file, "cannot be read as a checkpoint"):
        if file.suffix == ".safetensors":
            return load_file(file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols
                content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ClipspmError(_refusal(file, str(error))) from error
    if not isinstance(content, Mapping):
        raise ClipspmError(f"{file} holds a {type(content).__name__}: expected a dict with model_state_dict")
    return content


def _refusal(file: Path, reason: str) -> str:
    with open(file, "rb") as content:
        pickled = content.read(1) == b"\x80" or zipfile.is_zipfile(file)
    if not pickled:
        return f"{file} is neither a torch.save file nor .safetensors"
    wanted = re.search(r"GLOBAL (\S+)", reason)
    more = f"`{wanted[1]}`" if wanted else "code or objects"
    return (
        f"{file} holds {more} besides tensors and plain values; it was not loaded, because a pickle can run "
        "any code. If you trust its source, save the tensors alone as .safetensors and import that"
    )
