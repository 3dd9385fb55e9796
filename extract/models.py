"""Check encoder names and configuration files without loading torch."""

import difflib
import json
import math
import os
import re
import sys
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from clipspm.cache.disk import check_size, reading
from clipspm.cache.spec import ResizeMode
from clipspm.errors import ClipspmError, UsageError

LOCAL_DIR = "local-dir:"
#: of the Hugging Face hub, an open_clip model: ``hf-hub:ORG/NAME``
HUB = "hf-hub:"
#: an image tower of timm, without text: ``timm:NAME`` or ``timm:NAME.TAG``
TIMM = "timm:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_TIMM_NAME = re.compile(r"\w+(\.[\w-]+)?")
CONFIG_FILE = "open_clip_config.json"
_WEIGHTS = frozenset({".pt", ".pth", ".bin", ".safetensors"})


def check_model(name: str, pretrained: str | None) -> None:
    """Raise :class:`ClipspmError` for an unknown architecture, a bad ``local-dir:``, missing weights, or a
    missing package. A model that passes may still fail to load.
    """
    if pretrained and pretrained.startswith(LOCAL_DIR):
        name, pretrained = pretrained, None
    if name.startswith(LOCAL_DIR):
        if pretrained:
            raise UsageError(f"--model {name} brings its own weights: leave --pretrained {pretrained} out")
        check_tokenizer(name, local_config(Path(name.removeprefix(LOCAL_DIR))))
        return
    if name.startswith(HUB):
        if not _REPOSITORY.fullmatch(name.removeprefix(HUB)):
            raise UsageError(f"--model {name}: a model of the hub is hf-hub:ORG/NAME")
        if pretrained:
            raise UsageError(f"--model {name} brings its own weights: leave --pretrained {pretrained} out")
        return
    if name.startswith(TIMM):
        if not _TIMM_NAME.fullmatch(name.removeprefix(TIMM)):
            raise UsageError(f"--model {name}: an image tower of timm is timm:NAME or timm:NAME.TAG")
        if pretrained and not Path(pretrained).is_file():
            tagged = f"{name.partition('.')[0]}.{pretrained}"
            raise UsageError(f"--pretrained {pretrained}: no such file (a tag is part of the name: {tagged})")
        return
    if name not in (known := architectures()):
        raise unknown_architecture(name, known)
    check_tokenizer(name, _built_in(name))
    path = Path(pretrained or "")
    if (len(path.parts) > 1 or path.suffix.lower() in _WEIGHTS) and not path.is_file():
        raise UsageError(f"--pretrained {pretrained}: no such file")


def has_text(name: str) -> bool:
    """Whether the encoder called ``name`` has a text tower."""
    return not name.startswith(TIMM)


def check_tokenizer(name: str, config: dict[str, Any]) -> None:
    """Raise :class:`ClipspmError` if the texts of an architecture need a package that is not installed."""
    text = config.get("text_cfg", {})
    if (text.get("hf_tokenizer_name") or text.get("hf_model_name")) and find_spec("transformers") is None:
        raise ClipspmError(
            f"--model {name} reads texts with a tokenizer of transformers, which is not installed: "
            "pip install 'clipspm[transformers]'"
        )


def _built_in(name: str) -> dict[str, Any]:
    """open_clip's configuration of an architecture; empty if it was added in this process."""
    file = _configurations() / f"{name}.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}


def _configurations() -> Path:
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ClipspmError("open_clip is not installed: pip install open_clip_torch")
    return Path(spec.origin).parent / "model_configs"


def shown_name(name: str, pretrained: str | None) -> str:
    """The name of an encoder in records: of a ``local-dir:`` the folder's own name, without its place."""
    if pretrained and pretrained.startswith(LOCAL_DIR):
        name = pretrained
    return LOCAL_DIR + Path(name.removeprefix(LOCAL_DIR)).name if name.startswith(LOCAL_DIR) else name


def architectures() -> Collection[str]:
    """The architectures that open_clip knows, including those added in this process."""
    if "open_clip" in sys.modules:
        return list(sys.modules["open_clip"].list_models())
    return {file.stem for file in _configurations().glob("*.json")}


def unknown_architecture(name: str, known: Collection[str]) -> UsageError:
    """The error for an unknown architecture, with similar names."""
    close = difflib.get_close_matches(name, known, n=3) or ["ViT-B-16-quickgelu"]
    return UsageError(
        f"open_clip has no architecture {name!r}; close ones: {', '.join(close)} (or local-dir:FOLDER, "
        "hf-hub:ORG/NAME, timm:NAME; `clipspm encoders` lists some)"
    )


def local_config(folder: Path) -> dict[str, Any]:
    """The architecture of a ``local-dir:`` folder; raises :class:`ClipspmError` if it has no valid one."""
    if not (folder / CONFIG_FILE).is_file():
        raise ClipspmError(f"{LOCAL_DIR}{folder} has no {CONFIG_FILE}: it needs one beside the weights")
    file = folder / CONFIG_FILE
    with reading(file, "is not an open_clip configuration"):
        check_size(file, 2**20)
        content = json.loads(file.read_text())
        config = dict(content["model_cfg"])
        _check_sizes(config)
        _check_pixels(content.get("preprocess_cfg", {}))
        _check_tokenizer(config.get("text_cfg", {}).get("tokenizer_kwargs", {}))
    return config


def _check_tokenizer(settings: dict[str, Any]) -> None:
    """Refuse a vocabulary file, which the fingerprint would not cover, code, and tokens that are patterns."""
    if settings.get("trust_remote_code"):
        raise ValueError("its tokenizer runs code of its own")
    if settings.get("bpe_path", os.devnull) != os.devnull:
        raise ValueError(f"its tokenizer reads {settings['bpe_path']!r}, not open_clip's own vocabulary")
    for token in settings.get("additional_special_tokens", ()):
        if not re.fullmatch(r"[\w<>/-]+", token):
            raise ValueError(f"its tokenizer's token {token!r} is a pattern, not a word")


def _check_pixels(settings: dict[str, Any]) -> None:
    """Refuse pixels that cannot be normalised or resized as it says."""
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        if not all(least < value < math.inf for value in settings.get(name, ())):
            raise ValueError(f"its {name} of pixels is {settings[name]}")
    for name, known in (
        ("resize_mode", (*get_args(ResizeMode), None)),
        ("interpolation", ("bicubic", "bilinear", "random", None)),
    ):
        if settings.get(name) not in known:
            raise ValueError(f"its {name} is {settings[name]!r}")
    fill = settings.get("fill_color") or 0
    values = fill if isinstance(fill, list) else [fill] * 3
    if len(values) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in values):
        raise ValueError(f"its fill_color is {fill!r}")


#: the largest numbers in a configuration; building a model with larger ones could take forever
_MOST_LAYERS, _MOST_ANYTHING = 1024, 2**24


def _check_sizes(value: Any, name: str = "") -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_sizes(inner, key)
    elif isinstance(value, list):
        for inner in value:
            _check_sizes(inner, name)
    elif isinstance(value, int) and value > (_MOST_LAYERS if "layers" in name else _MOST_ANYTHING):
        raise ValueError(f"{name} is {value}")
