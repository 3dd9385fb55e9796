"""Load an encoder from a tag, a file, a ``local-dir:`` folder, the hub, timm, or OpenAI's archive.

The result is an open_clip model with real weights or an error: never random weights, and never an activation
other than the one the weights were trained with. No file can run code: only tensors and plain values are
unpickled, and TorchScript archives are opened only if they are OpenAI's.
"""

import hashlib
import json
import logging
import re
import threading
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_checkpoint
from open_clip.pretrained import (
    download_pretrained,
    get_pretrained_cfg,
    get_pretrained_url,
    list_pretrained_models_by_tag,
)

from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.models import (
    CONFIG_FILE,
    HUB,
    LOCAL_DIR,
    TIMM,
    check_tokenizer,
    local_config,
    shown_name,
    unknown_architecture,
)
from clipspm.extract.timm_towers import architecture_of, build_tower, load_tower, repository_of
from clipspm.progress import remark

#: seconds after which a hub that does not answer counts as unreachable
HUB_SECONDS = 4.0


class WeightsOutOfReach(ClipspmError):
    """The weights of a tag are neither on this machine nor downloadable from the hub."""


@dataclass(frozen=True)
class LoadedModel:
    """An open_clip model with weights, and the digests and names that identify it.

    ``tokenizer`` None: the model has no text tower.
    """

    model: Any
    tokenizer: Any
    name: str
    pretrained: str
    architecture_sha256: str
    weights_sha256: str
    activation: str


def load_model(name: str, pretrained: str | None) -> LoadedModel:
    """Load an encoder in float32 on the CPU.

    ``name`` is an open_clip architecture, ``local-dir:FOLDER``, ``hf-hub:ORG/NAME`` or ``timm:NAME``;
    ``pretrained`` a tag or a file.
    Raises :class:`ClipspmError` for unknown names, an unreachable hub, weights that do not fit, and an
    architecture whose activation differs from that of its weights.
    """
    if pretrained and pretrained.startswith(LOCAL_DIR):
        name, pretrained = pretrained, None
    if name.startswith(LOCAL_DIR):
        if pretrained:
            raise UsageError(f"--model {name} brings its own weights: leave --pretrained {pretrained} out")
        config = local_config(Path(name.removeprefix(LOCAL_DIR)))
        model = _build(name)
        return _loaded(model, name, shown_name(name, None), "", config)
    if name.startswith(HUB):
        folder = _hub_folder(name.removeprefix(HUB))
        config = local_config(folder)
        check_tokenizer(name, config)
        return _loaded(_build(f"{LOCAL_DIR}{folder}"), name, name, "", config)
    if name.startswith(TIMM):
        return _load_timm(name.removeprefix(TIMM), Path(pretrained) if pretrained else None)
    config = architecture(name)
    if not pretrained:
        raise UsageError(f"--model {name} needs --pretrained: a tag ({_tags(name)}) or a weights file")
    path = Path(pretrained)
    if path.is_file():
        model = _build(name, load_weights=False)
        _load_file(model, name, path, bool(config.get("quick_gelu")))
        return _loaded(model, name, name, path.name, config)
    cfg = get_pretrained_cfg(name, pretrained)
    if not cfg:
        raise UsageError(
            f"--pretrained {pretrained!r} is neither a file nor a tag of {name}; its tags: {_tags(name)}"
        )
    if bool(cfg.get("quick_gelu")) != bool(config.get("quick_gelu")):
        raise UsageError(activation_mismatch(name, f"the tag {pretrained!r}", bool(cfg.get("quick_gelu"))))
    checkpoint = _fetch(name, pretrained, cfg)
    model = _build(name, pretrained=pretrained, load_weights=False)
    _load_file(model, name, checkpoint, bool(config.get("quick_gelu")))
    return _loaded(model, name, name, pretrained, config)


def _loaded(model: Any, source: str, shown: str, pretrained: str, config: dict[str, Any]) -> LoadedModel:
    try:
        tokenizer = open_clip.get_tokenizer(source) if not source.startswith(TIMM) else None
    except Exception as error:
        raise ClipspmError(f"the tokenizer of {shown} cannot be loaded: {_one_line(error)}") from error
    activations = {type(m).__name__ for m in model.modules()}
    return LoadedModel(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        name=shown,
        pretrained=pretrained,
        architecture_sha256=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        weights_sha256=weights_digest(model),
        activation="quick_gelu" if "QuickGELU" in activations else "gelu",
    )


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights, independent of the file format."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -------------------------------------------------------------------------------------- architectures


def architecture(name: str) -> dict[str, Any]:
    """open_clip's configuration of ``name``; raises :class:`UsageError` with similar names if unknown."""
    config = open_clip.get_model_config(name)
    if config is None:
        raise unknown_architecture(name, open_clip.list_models())
    return dict(config)


def _build(name: str, pretrained: str | None = None, *, load_weights: bool = True) -> Any:
    """Build the model; with ``load_weights=False``, only the preprocessing of ``pretrained`` is used.

    Without a tag it is that of all of the architecture's tags, or open_clip's default where they differ.
    """
    logging.getLogger().addFilter(_silence)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if load_weights:
                return open_clip.create_model(name, require_pretrained=True)
            return open_clip.create_model(
                name,
                load_weights=False,
                pretrained_image=False,
                force_preprocess_cfg=_published_pixels(name, pretrained),
            )
    except Exception as error:
        raise ClipspmError(f"the encoder {name} cannot be built: {_one_line(error)}") from error
    finally:
        logging.getLogger().removeFilter(_silence)


def built_without_weights(name: str) -> Any:
    """Build one of open_clip's architectures for its shapes: its weights are random."""
    return _build(name, load_weights=False)


def _published_pixels(name: str, tag: str | None) -> dict[str, Any]:
    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(name)
    keys = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    found = []
    for each in tags:
        cfg = get_pretrained_cfg(name, each)
        found.append({k: cfg[k] for k in keys if cfg.get(k) is not None})
    return found[0] if found and all(one == found[0] for one in found) else {}


def _silence(record: logging.LogRecord) -> bool:
    return "nitialized randomly" not in record.getMessage()


def _tags(name: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name)
    return ", ".join(tags) if tags else "none are published"


def activation_mismatch(name: str, weights: str, weights_quick: bool) -> str:
    """The message for an activation mismatch, with the architecture that fits ``weights``."""
    base = name.removesuffix("-quickgelu")
    right = f"{base}-quickgelu" if weights_quick else base
    trained, built = ("QuickGELU", "GELU") if weights_quick else ("GELU", "QuickGELU")
    return f"{weights} was trained with {trained}, but --model {name} computes {built}: use --model {right}"


# ---------------------------------------------------------------------------------------------- files


def _load_file(model: Any, name: str, path: Path, quick_gelu: bool) -> None:
    if _is_torchscript(path):
        if not quick_gelu:
            raise UsageError(activation_mismatch(name, f"OpenAI's archive {path.name}", weights_quick=True))
        if _sha256(path) not in openai_archives():
            raise ClipspmError(
                f"{path} is a TorchScript archive, which can run code, and by its SHA-256 not one that "
                "OpenAI published: it was not loaded. Save only the state dict, as .safetensors"
            )
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # no other reader
                state = torch.jit.load(str(path), map_location="cpu").state_dict()
        except RuntimeError as error:
            raise ClipspmError(f"{path} is a damaged TorchScript archive: {_one_line(error)}") from error
        for key in ("input_resolution", "context_length", "vocab_size", "attn_mask"):  # not weights
            state.pop(key, None)
        try:
            model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True)
        except RuntimeError as error:
            raise ClipspmError(f"{path} does not fit --model {name}: {_one_line(error)}") from error
        return
    try:
        load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:
        raise ClipspmError(f"{path} does not fit --model {name}: {_one_line(error)}") from error


def openai_archives() -> set[str]:
    """The SHA-256 of the archives that OpenAI published, taken from their URLs."""
    urls = (get_pretrained_url(name, "openai") for name in list_pretrained_models_by_tag("openai"))
    return {url.split("/")[-2] for url in urls if "openaipublic" in url}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in entry for entry in archive.namelist())


# ----------------------------------------------------------------------------------------------- timm


def _load_timm(name: str, file: Path | None) -> LoadedModel:
    tower = build_tower(name)
    pretrained = file.name if file else ""
    if file is None:
        repository, names = repository_of(name)
        file = _fetch_first(f"{TIMM}{name}", repository, names)
    try:
        load_tower(tower, file)
    except Exception as error:
        raise ClipspmError(f"{file} does not fit --model {TIMM}{name}: {_one_line(error)}") from error
    return _loaded(tower, f"{TIMM}{name}", f"{TIMM}{name}", pretrained, architecture_of(tower))


# ------------------------------------------------------------------------------------------------ hub


def _fetch(name: str, tag: str, cfg: dict[str, Any]) -> Path:
    """The file of the tag's checkpoint, from the local cache or downloaded; checked by its SHA-256."""
    what = f"{tag!r} of {name}"
    repository = str(cfg.get("hf_hub", "")).rpartition("/")
    names = [repository[2]] if repository[2] else _OPEN_CLIP_WEIGHTS
    if not _already_downloaded(repository[0], names):
        _announce(what, cfg)
    try:
        path = Path(download_pretrained(cfg))
    except Exception as error:
        raise WeightsOutOfReach(f"downloading {what} failed: {_one_line(error)}") from error
    return _undamaged(path, what)


def _announce(what: str, cfg: dict[str, Any]) -> None:
    """Say that ``what`` is about to be downloaded; raises :class:`WeightsOutOfReach` if nobody answers."""
    if not _hub_answers(cfg):
        raise _out_of_reach(what)
    remark(f"downloading {what}, once")


#: what open_clip's and timm's weights are called in a repository of the hub
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def _hub_folder(repository: str) -> Path:
    """The folder with configuration and weights of an open_clip model of the hub."""
    config = _fetch_first(f"{HUB}{repository}", repository, (CONFIG_FILE,))
    _fetch_first(f"{HUB}{repository}", repository, _OPEN_CLIP_WEIGHTS)
    return config.parent


def _fetch_first(what: str, repository: str, names: Sequence[str]) -> Path:
    """The first of the files ``names`` that a repository of the hub has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if not _already_downloaded(repository, names):
        _announce(what, {"hf_hub": repository})
    for name in names:
        try:
            return _undamaged(Path(hf_hub_download(repository, name)), what)
        except EntryNotFoundError:
            continue
        except WeightsOutOfReach:
            raise
        except Exception as error:
            raise WeightsOutOfReach(f"downloading {name} of {what} failed: {_one_line(error)}") from error
    raise ClipspmError(f"{what}: the repository {repository} of the hub has no {' or '.join(names)}")


def _out_of_reach(what: str) -> WeightsOutOfReach:
    return WeightsOutOfReach(
        f"the weights {what} are not on this machine and the model hub cannot be reached: "
        "give a local file (--pretrained ViT-B-16.pt), a local-dir: (--model local-dir:FOLDER), "
        "or try --dataset demo, which needs no download"
    )


def _undamaged(path: Path, what: str) -> Path:
    """``path``, if it has the SHA-256 that the hub states; else it is removed."""
    blob = path.resolve()  # the hub's cache names a file by the SHA-256 that the hub states, and links to it
    if re.fullmatch("[0-9a-f]{64}", blob.name) and _sha256(blob) != blob.name:
        blob.unlink()
        raise WeightsOutOfReach(
            f"the weights {what} were damaged: their SHA-256 was not the hub's, {blob.name}; "
            f"{blob} was removed: run the same command to download it again"
        )
    return path


def _already_downloaded(repository: str, names: Sequence[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return bool(repository) and any(isinstance(try_to_load_from_cache(repository, n), str) for n in names)


def _hub_answers(cfg: dict[str, Any]) -> bool:
    """Whether the host of the weights answers within ``HUB_SECONDS``; any HTTP status counts."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = constants.ENDPOINT if cfg.get("hf_hub") else str(cfg.get("url"))
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=HUB_SECONDS):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)  # a thread, because name look-ups ignore the timeout
    thread.start()
    thread.join(HUB_SECONDS)
    return answered.is_set()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " ..."
