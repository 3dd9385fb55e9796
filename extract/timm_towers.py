"""Image towers of timm as encoders without text: DINOv2, DINOv3, ConvNeXt, whatever timm builds."""

import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from math import floor
from pathlib import Path
from typing import Any

import timm
from open_clip.timm_model import TimmModel
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from clipspm.errors import ClipspmError, UsageError

#: timm's words for how frames are resized, and open_clip's
_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}


class _Visual(TimmModel):  # type: ignore[misc]
    """A timm model, pooled as it pools itself and without classifier, in open_clip's adapter."""

    def __init__(self, trunk: nn.Module, size: tuple[int, int]) -> None:
        nn.Module.__init__(self)  # the adapter's own would build a model
        self.trunk, self.head, self.image_size = trunk, nn.Identity(), size


class ImageTower(nn.Module):
    """What :class:`~.encoder.Encoder` uses of an open_clip model, without a text tower."""

    def __init__(self, name: str, trunk: nn.Module) -> None:
        super().__init__()
        self.name = name
        pixels = _pixels(trunk)
        self.visual = _Visual(trunk, pixels["size"])
        self.visual.preprocess_cfg = pixels

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """The embeddings of ``images`` [B, 3, H, W]: [B, D]."""
        found: Tensor = self.visual(images)
        return nn.functional.normalize(found, dim=-1) if normalize else found

    def forward_intermediates(
        self,
        image: Tensor,
        image_indices: Sequence[int],
        image_output_fmt: str,
        image_output_extra_tokens: bool = False,
        normalize: bool = False,
    ) -> dict[str, Any]:
        """As of an open_clip model: the embeddings, and the output of blocks or stages."""
        return dict(
            self.visual.forward_intermediates(
                image,
                indices=list(image_indices),
                output_fmt=image_output_fmt,
                output_extra_tokens=image_output_extra_tokens,
            )
        )


def build_tower(name: str) -> ImageTower:
    """Build ``NAME`` or ``NAME.TAG`` with random weights; raises :class:`UsageError` for an unknown one."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; close ones: {', '.join(close)}" if close else ""
        raise UsageError(f"timm {timm.__version__} has no model {architecture!r}{hint}")
    known = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        raise UsageError(f"--model timm:{name}: timm knows it as {', '.join(known) or 'untagged only'}")
    try:
        with warnings.catch_warnings(action="ignore"):
            return ImageTower(name, timm.create_model(name, pretrained=False, num_classes=0))
    except Exception as error:
        raise ClipspmError(
            f"the encoder timm:{name} cannot be built: {' '.join(str(error).split())}"
        ) from error


def repository_of(name: str) -> tuple[str, tuple[str, ...]]:
    """The repository of the hub with the weights of a tower, and what the file may be called."""
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        raise UsageError(
            f"timm publishes no weights of timm:{name} on the hub: give a file with --pretrained"
        )
    repository = f"timm/{name}" if cfg.hf_hub_id == "timm/" else str(cfg.hf_hub_id)
    own = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else ()
    return repository, (*own, "model.safetensors", "pytorch_model.bin")


def load_tower(tower: ImageTower, file: Path) -> None:
    """Load all weights of a tower but a classifier's from ``file``, in timm's or the authors' naming.

    Raises whatever the file or its tensors do wrong; none is left out.
    """
    trunk: Any = tower.visual.trunk
    state = timm.models.load_state_dict(str(file), device="cpu", weights_only=True)
    convert = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        state = convert(state, trunk)
    heads = trunk.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    wanted = trunk.state_dict()
    state = {k: v for k, v in state.items() if k in wanted or not k.startswith(tuple(f"{h}." for h in heads))}
    trunk.load_state_dict(state, strict=True)


def architecture_of(tower: ImageTower) -> dict[str, Any]:
    """What identifies a tower besides its weights."""
    return {"timm_model": tower.name.partition(".")[0], "image_size": list(tower.visual.image_size)}


def _pixels(trunk: Any) -> dict[str, Any]:
    """How timm prepares images for a model, in open_clip's words; ``resize``: the size before the crop."""
    found: dict[str, Any] = resolve_model_data_config(trunk)  # type: ignore[no-untyped-call]
    channels, height, width = found["input_size"]
    if channels != 3:
        raise ClipspmError(f"it takes images of {channels} channels, not 3")
    fill = [round(255 * value) for value in found["mean"]]
    return {
        "size": (height, width),
        "resize": floor(min(height, width) / found["crop_pct"]),
        "resize_mode": _MODES[found["crop_mode"]],
        "interpolation": found["interpolation"],
        "mean": found["mean"],
        "std": found["std"],
        "fill_color": fill,
    }
