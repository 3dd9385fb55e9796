"""Turn a fine-tuned visual tower (in OpenAI's naming) into a checkpoint of a complete open_clip model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from torch import Tensor

from clipspm.cache.checked import save_tensors
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.models import LOCAL_DIR
from clipspm.extract.weights import (
    WeightsOutOfReach,
    activation_mismatch,
    architecture,
    load_model,
    weights_digest,
)

_VISUAL = "visual."
#: batch normalisation counters: no output depends on them, and some files lack them
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class SavedEncoder:
    """The written checkpoint; ``model`` and ``file`` are ``--model`` and ``--pretrained`` of ``extract``."""

    model: str
    file: str
    base: str
    weights_sha256: str
    pixel_norm: str = "none"

    def as_dict(self) -> dict[str, Any]:
        """The fields in plain JSON types."""
        return asdict(self)


def save_encoder(
    tower: Mapping[str, Tensor],
    out: str | Path,
    *,
    model: str | None = None,
    base: str = "openai",
    dim: int | None = None,
) -> SavedEncoder:
    """Write ``tower`` (names without prefix) and all other weights, from ``base``, to ``out`` (.safetensors).

    ``model``: the open_clip architecture, by default OpenAI's with the tower's shapes; ``base``: one of its
    tags or a weights file; ``dim``: the required output width. Raises :class:`ClipspmError`, naming the
    parameter, if one does not fit; then nothing is written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise UsageError(f"--weights-out {out}: the name must end in .safetensors")
    if out.exists():
        raise UsageError(f"{out} exists already: name another --weights-out")
    name = model or infer_architecture(tower)
    whole = _base_model(name, base)
    state = {key: value.detach().contiguous() for key, value in whole.state_dict().items()}
    fitted = _fitted(tower, {k: v for k, v in state.items() if k.startswith(_VISUAL)}, name)
    width = int(whole.visual.output_dim)
    if dim is not None and width != dim:
        raise ClipspmError(f"the visual tower gives {width} values per frame, the heads take {dim}")
    whole.load_state_dict(state | fitted)
    save_tensors(out, {k: v.contiguous() for k, v in whole.state_dict().items()}, {})
    shown = Path(base).name if Path(base).is_file() else base
    return SavedEncoder(name, str(out), shown, weights_digest(whole))


def infer_architecture(tower: Mapping[str, Tensor]) -> str:
    """OpenAI's architecture with the shapes of ``tower``; raises :class:`UsageError` if there is none."""
    shape = _tower_shape(tower)
    known = [name for name in open_clip.list_models() if name.endswith("-quickgelu")]
    for name in known:
        if "openai" not in open_clip.list_pretrained_tags_by_model(name):
            continue
        if shape is not None and shape == _config_shape(open_clip.get_model_config(name)):
            return str(name)
    found = shape.words() if shape else "neither a ViT nor a ResNet of CLIP's"
    raise UsageError(f"the visual tower is {found}, not an architecture of OpenAI's: name it with --model")


@dataclass(frozen=True)
class _TowerShape:
    layers: int | tuple[int, ...]
    width: int
    patch: int | None
    tokens: int
    dim: int

    def words(self) -> str:
        kind = f"a ViT with patches of {self.patch} pixels" if self.patch else "a ResNet"
        return f"{kind}, layers {self.layers}, width {self.width}, {self.tokens} positions, D {self.dim}"


def _tower_shape(tower: Mapping[str, Tensor]) -> _TowerShape | None:
    """Read the architecture off the shapes of a tower; None if it is not a CLIP tower."""
    try:
        stem = tower["conv1.weight"].shape
        if "attnpool.positional_embedding" in tower:
            stages = tuple(_count(tower, f"layer{stage}.") for stage in (1, 2, 3, 4))
            positions, dim = tower["attnpool.positional_embedding"], tower["attnpool.c_proj.weight"].shape[0]
            return _TowerShape(stages, 2 * stem[0], None, positions.shape[0] - 1, dim)
        blocks, positions = _count(tower, "transformer.resblocks."), tower["positional_embedding"]
        return _TowerShape(blocks, stem[0], stem[-1], positions.shape[0] - 1, tower["proj"].shape[1])
    except (KeyError, IndexError):
        return None


def _count(tower: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in tower if key.startswith(prefix)})


def _config_shape(config: dict[str, Any]) -> _TowerShape | None:
    vision = config["vision_cfg"]
    layers, patch = vision.get("layers"), vision.get("patch_size")
    if layers is None or isinstance(vision["image_size"], list | tuple):
        return None
    layers = tuple(layers) if isinstance(layers, list | tuple) else layers
    tokens = (vision["image_size"] // (patch or 32)) ** 2
    return _TowerShape(layers, vision["width"], patch, tokens, config["embed_dim"])


def _base_model(name: str, base: str) -> Any:
    """Load the open_clip model that all weights but the tower's come from."""
    if name.startswith(LOCAL_DIR) or base.startswith(LOCAL_DIR):
        raise UsageError("--model takes an open_clip architecture and --base a tag or a file, not local-dir:")
    if not architecture(name).get("quick_gelu"):
        raise UsageError(activation_mismatch(name, "a tower in OpenAI's naming", weights_quick=True))
    if not Path(base).is_file() and not get_pretrained_cfg(name, base):
        raise UsageError(f"--base {base!r} is neither a file nor a tag of {name}, such as openai")
    try:
        return load_model(name, base).model
    except WeightsOutOfReach as error:
        raise ClipspmError(
            f"the text tower comes from the weights {base!r} of {name}, which are not on this machine and "
            "cannot be downloaded: give them as a file (--base FILE) or import the heads alone (--heads-only)"
        ) from error


def _fitted(tower: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """``tower`` with the names and dtypes of ``wanted``; raises :class:`ClipspmError` for a mismatch."""
    given = {_VISUAL + key: value for key, value in tower.items()}
    for key, like in wanted.items():
        short = key.removeprefix(_VISUAL)
        if key not in given:
            if not key.endswith(_COUNTER):
                raise ClipspmError(f"the visual tower does not fit --model {name}: {short} is missing")
        elif given[key].shape != like.shape:
            raise ClipspmError(
                f"the visual tower does not fit --model {name}: {short} has shape "
                f"{tuple(given[key].shape)}, needed {tuple(like.shape)}"
            )
        elif not torch.isfinite(given[key]).all():
            raise ClipspmError(f"the visual tower's {short} holds values that are not finite")
    for key in given:
        if key not in wanted:
            short = key.removeprefix(_VISUAL)
            raise ClipspmError(f"the visual tower does not fit --model {name}: it has no {short}")
    return {key: value.to(wanted[key].dtype) for key, value in given.items()}
