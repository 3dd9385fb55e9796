"""The frozen image and text encoder: from pixels and prompts to features of several layers.

Shapes: B images of H x W pixels, D a layer's width, C classes, P prompt templates.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from inspect import signature
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from open_clip.timm_model import TimmModel
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import pad, resize

from clipspm.cache.spec import FINAL, ResizeMode
from clipspm.devices import resolve_device
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.config import Precision
from clipspm.extract.layers import MEAN, TOKENS, Tower, number_of, settle, token_of
from clipspm.extract.measured import recall, remember
from clipspm.extract.prompts import fill
from clipspm.extract.views import Clip, Cut
from clipspm.extract.weights import LoadedModel, load_model
from clipspm.progress import track

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: largest relative error against float32 that ``auto`` accepts on its probe; real frames may reach twice it
AUTO_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Preprocessing:
    """How frames are resized and normalised, as in :class:`~clipspm.cache.spec.CacheSpec`.

    Sizes in pixels; mean and std for values in [0, 1].
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_mode: ResizeMode = "shortest"
    crop_width: int | None = None
    fill: tuple[int, ...] = (0, 0, 0)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images that the encoder takes."""
        return self.crop, self.crop_width or self.crop

    @property
    def margin(self) -> bool:
        """Whether frames are scaled to more than the crop, so that random views differ."""
        return self.resize_mode == "shortest" or self.resize > min(self.shape)


class Encoder:
    """A frozen open_clip model that returns the features of ``layers``.

    :mod:`.layers` says what they are called; ``auto`` among them stands for several, with ``tokens`` of each
    block of a ViT. ``final`` is the projected, **unnormalised** embedding. Raises :class:`UsageError` for a
    layer that the model does not have.
    """

    def __init__(
        self,
        model: str = "ViT-B-16-quickgelu",
        pretrained: str | None = "openai",
        *,
        layers: Sequence[str] = (FINAL,),
        tokens: Sequence[str] = TOKENS,
        device: str | None = None,
        precision: Precision = "auto",
        resize: int | None = None,
        pixel_norm: Literal["model", "none"] = "model",
    ) -> None:
        self.source: LoadedModel = load_model(model, pretrained)
        self.device = resolve_device(device or "auto")
        self._model = self.source.model.to(self.device)
        self._in_bf16: Any = None
        visual = self._model.visual
        self._kind = _tower_kind(visual)
        self.tower = tower_of(self.source.name, visual)
        self.layers = settle((*layers, FINAL), tokens, self.tower)
        self._indices = sorted({number_of(layer) for layer in self.layers if layer != FINAL})
        self.preprocessing = preprocessing_of(visual.preprocess_cfg, resize, pixel_norm)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(self.preprocessing.mean, device=self.device).view(shape[1:]) * 255
        self._std = torch.tensor(self.preprocessing.std, device=self.device).view(shape[1:]) * 255
        #: CUDA stream for resizing clips and filling batches while another batch is encoded
        self._copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.precision: str = precision if precision != "auto" else "fp32"
        probe = self._probe_images(2)
        self.dims = {layer: value.shape[-1] for layer, value in self.encode_images(probe).items()}
        if precision == "auto":
            self.precision = self._fastest_precision()

    def identity(self) -> dict[str, Any]:
        """Return the fields of a :class:`CacheSpec` that the encoder decides."""
        source = self.source
        return {
            "model": source.name,
            "pretrained": source.pretrained,
            "architecture_sha256": source.architecture_sha256,
            "weights_sha256": source.weights_sha256,
            "activation": source.activation,
            "precision": self.precision,
            "layers": self.layers,
            "dims": self.dims,
            **asdict(self.preprocessing),
            "logit_scale": _number(self._model, "logit_scale", math.exp),
            "logit_bias": _number(self._model, "logit_bias"),
        }

    def pixel_buffer(self, count: int, *, on_device: bool = False) -> Tensor:
        """An empty buffer for images, uint8 [count, H, W, 3], on the device or in main memory.

        In main memory it is pinned if the device is a GPU, so that copies overlap with computation.
        """
        shape = (count, *self.preprocessing.shape, 3)
        if on_device:
            return torch.empty(shape, dtype=torch.uint8, device=self.device)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    @torch.inference_mode()
    def views(self, clip: Clip) -> Tensor:
        """A clip's views as uint8 [V * T, H, W, 3], for :meth:`put`; full frames are resized here."""
        pixels = torch.from_numpy(clip.pixels)
        if clip.cut is None:
            return pixels.flatten(0, 1)
        with self._on_copy_stream():
            return cut_views(pixels.to(self.device), clip.cut, self.preprocessing)

    def put(self, frames: Tensor, room: Tensor) -> None:
        """Copy :meth:`views` into ``room``, a part of a :meth:`pixel_buffer` that is not being encoded."""
        with self._on_copy_stream():
            room.copy_(frames)

    def _on_copy_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._copy_stream is None else torch.cuda.stream(self._copy_stream)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> dict[str, Tensor]:
        """Encode ``pixels``, uint8 [B, 3, H, W]. Returns float32 [B, D] per layer, on the device."""
        if self._copy_stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copy_stream)
        images = pixels.to(self.device, non_blocking=True).to(torch.float32)
        images = (images - self._mean).div_(self._std)
        dtype = _DTYPES[self.precision]
        blocks = hasattr(self._model.visual, "transformer")  # open_clip's own ViT
        if dtype == torch.bfloat16 and self.device.type == "cpu" and blocks:
            found = self._forward(self._with_blocks_in_bf16(), images)
        else:
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                found = self._forward(self._model, images)
        return {layer: value.float() for layer, value in found.items()}

    def _with_blocks_in_bf16(self) -> Any:
        """A copy of the model whose ViT blocks compute in bf16 around a float32 residual stream.

        On a CPU, autocast is slower than float32, because torch's attention then copies its weights for every
        frame. This takes less than a third of the time of float32, with a smaller error than autocast.
        """
        if self._in_bf16 is None:
            visual = copy.deepcopy(self._model.visual)
            for block in visual.transformer.resblocks:
                block.attn.bfloat16()
                block.mlp.bfloat16()
                for norm in (block.ln_1, block.ln_2):
                    norm.register_forward_hook(lambda module, given, out: out.bfloat16())
            self._in_bf16 = copy.copy(self._model)
            self._in_bf16._modules = {**self._model._modules, "visual": visual}
        return self._in_bf16

    def encode_text(self, class_names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """Unnormalised text features, float32 [C, P, D], in the order given; no templates give none.

        Raises :class:`ClipspmError` if the model has no text tower.
        """
        if not templates:
            return np.zeros((len(class_names), 0, self.dims[FINAL]), np.float32)
        texts = [[fill(template, name) for template in templates] for name in class_names]
        return torch.stack(self._encode_texts(texts)).numpy()

    def encode_descriptions(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """One normalised text feature per class, float32 [C, 1, D]: of its normalised sentences the mean."""
        each = [normalize(found, dim=-1).mean(0, keepdim=True) for found in self._encode_texts(sentences)]
        return normalize(torch.stack(each), dim=-1).numpy()

    def cut(self, texts: Sequence[str]) -> list[str]:
        """Those of ``texts`` that are longer than the text tower reads, each once."""
        texts, tokenizer = list(dict.fromkeys(texts)), self.source.tokenizer
        read = tokenizer([*texts, ""])
        more = tokenizer([*texts, ""], context_length=read.shape[1] + 1)
        # some tokenizers end a text that they cut with its last token, others just stop
        cut = (read != more[:, :-1]).any(1) | (more[:, -1] != more[-1, -1])
        return [text for text, is_cut in zip(texts, cut[:-1].tolist(), strict=True) if is_cut]

    @property
    def reads(self) -> int:
        """How many tokens of a text are read."""
        return int(self.source.tokenizer([""]).shape[1])

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[Sequence[str]]) -> list[Tensor]:
        """Unnormalised features of each class's texts, float32 [texts, D], in main memory."""
        if self.source.tokenizer is None:
            raise ClipspmError(f"{self.source.name} has no text tower: it encodes images only")
        rows = []
        known = getattr(self._model, "vocab_size", None)
        for given in track(texts, "encoding texts", len(texts), "classes"):
            tokens = self.source.tokenizer(list(given))
            if known is not None and int(tokens.max()) >= known:
                raise ClipspmError(
                    f"{self.source.name}: its tokenizer gives token {int(tokens.max())}, its text tower has "
                    f"{known}: set text_cfg.vocab_size in its configuration to that of its weights"
                )
            rows.append(self._model.encode_text(tokens.to(self.device), normalize=False).float().cpu())
        return rows

    def _forward(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        if not self._indices:
            return {FINAL: model.encode_image(images, normalize=False)}
        tokens = self._kind == "vit"
        # a ModifiedResNet stops after the highest stage requested; the embedding needs the last one
        extra = [4] if self._kind == "resnet" and 4 not in self._indices else []
        asked = self._indices + extra
        options: dict[str, Any] = (
            {"image_output_fmt": "NLC", "image_output_extra_tokens": True}
            if tokens
            else {"image_output_fmt": "NCHW"}
        )
        out = model.forward_intermediates(image=images, image_indices=asked, normalize=False, **options)
        found = {}
        for layer in self.layers:
            if layer == FINAL:
                found[layer] = out["image_features"]
                continue
            place = asked.index(number_of(layer))
            if tokens and self.tower.cls and token_of(layer) != MEAN:
                found[layer] = out["image_intermediates_prefix"][place][:, 0]
            else:
                found[layer] = out["image_intermediates"][place].float().mean(dim=1 if tokens else (-2, -1))
        return found

    # ------------------------------------------------------------------------------------- precision

    def _probe_images(self, count: int) -> Tensor:
        """Smooth random images, uint8 [count, 3, H, W], which resemble photographs more than noise."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(count, 3, 8, 8, generator=generator) * 255
        smooth = torch.nn.functional.interpolate(coarse, size=self.preprocessing.shape, mode="bicubic")
        return smooth.clamp(0, 255).to(torch.uint8)

    def _fastest_precision(self) -> str:
        """The fastest precision within the tolerance of float32 on this device, measured once."""
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{_cpu_name()} {torch.backends.cpu.get_cpu_capability()}"
        )
        identity = self.source.architecture_sha256[:8] + self.source.weights_sha256[:16]
        key = f"{name}|{torch.__version__}|{identity}|{','.join(self.layers)}"
        return recall(key) or remember(key, self._measure_precision())

    def _measure_precision(self) -> str:
        smooth = self._probe_images(8)
        noise = torch.randint(0, 256, smooth.shape, generator=torch.Generator().manual_seed(0))
        probe = torch.cat([smooth, noise.to(torch.uint8)])
        self.precision = best = "fp32"
        exact = self.encode_images(probe)
        # a smaller gain could be timing noise, and is not worth features that differ
        fastest = 0.8 * self._time(smooth)
        for candidate in track(("bf16", "fp16"), "measuring precisions", 2, "precisions"):
            self.precision = candidate
            try:
                spent = self._time(smooth, enough=fastest)
                if spent < fastest and _largest_error(self.encode_images(probe), exact) <= AUTO_TOLERANCE:
                    best, fastest = candidate, spent
            except RuntimeError:  # not implemented on this device
                continue
        return best

    def _time(self, images: Tensor, enough: float = float("inf")) -> float:
        """Median seconds of five runs; stops early if all runs so far took more than twice ``enough``."""
        runs: list[float] = []
        while len(runs) < 5 and (not runs or min(runs) < 2 * enough):
            start = time.perf_counter()
            self.encode_images(images)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            runs.append(time.perf_counter() - start)
        return sorted(runs)[len(runs) // 2]


def _largest_error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest relative error over images and layers."""
    errors = [(found[k] - exact[k]).norm(dim=-1) / exact[k].norm(dim=-1).clamp_min(1e-12) for k in exact]
    return float(torch.cat(errors).max())


class PendingFeatures:
    """Features that are being copied from the device to main memory."""

    def __init__(self, features: dict[str, Tensor]) -> None:
        self._values = {layer: value.to("cpu", non_blocking=True) for layer, value in features.items()}
        self._copied: torch.cuda.Event | None = None
        device = next(iter(features.values())).device
        if device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(device))

    def wait(self) -> dict[str, Tensor]:
        """Wait for the copy, but not for later work on the device. Returns the features [B, D] per layer."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values


def tower_of(name: str, visual: Any) -> Tower:
    """What the image tower of a model has; raises :class:`ClipspmError` for a kind that is not supported."""
    kind = _tower_kind(visual)
    return Tower(name, _depth(visual, kind), tokens=kind == "vit", cls=_has_class_token(visual, kind))


def _number(model: Any, name: str, read: Callable[[float], float] = float) -> float | None:
    """A scalar parameter of the model, to six digits; None if it has none."""
    value = getattr(model, name, None)
    return None if value is None else float(f"{read(float(value)):.6g}")


def _tower_kind(visual: Any) -> str:
    name = type(visual).__name__
    if name == "ModifiedResNet":
        return "resnet"
    if name == "VisionTransformer":
        return "vit"
    if isinstance(visual, TimmModel):
        trunk = visual.trunk
        tokens = signature(getattr(trunk, "forward_intermediates", len)).parameters
        return "vit" if hasattr(trunk, "blocks") and "return_prefix_tokens" in tokens else "timm"
    raise ClipspmError(f"the image tower {name} is not supported: ViT, ModifiedResNet and timm towers are")


def _depth(visual: Any, kind: str) -> int:
    if kind == "resnet":
        return 5
    if kind == "timm":
        has_stages = hasattr(visual.trunk, "forward_intermediates")
        return len(visual.trunk.feature_info) if has_stages else 0
    blocks = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    return len(blocks)


def _has_class_token(visual: Any, kind: str) -> bool:
    if kind != "vit":
        return False
    return not hasattr(visual, "trunk") or getattr(visual.trunk, "cls_token", None) is not None


def preprocessing_of(config: dict[str, Any], resize: int | None, pixel_norm: str) -> Preprocessing:
    """What a model's own configuration says, with ``resize`` and ``pixel_norm`` in place of it where given.

    Where frames cover the crop (``shortest``) and the model does not say by how much, a margin of a seventh
    is kept around it, as is the custom in action recognition; other models see whole frames.
    """
    size = config["size"]
    height, width = (int(size[0]), int(size[-1])) if isinstance(size, list | tuple) else (int(size),) * 2
    mode = str(config.get("resize_mode") or "shortest")
    least = min(height, width)
    if resize is None:
        resize = config.get("resize")
    if resize is None:
        resize = round(least * 8 / 7) if mode == "shortest" else least
    if resize < least:
        raise UsageError(f"--resize {resize} is smaller than the crop of {least} pixels")
    interpolation = "bicubic" if config["interpolation"] == "random" else str(config["interpolation"])
    if mode not in get_args(ResizeMode) or interpolation not in ("bicubic", "bilinear"):
        raise ClipspmError(
            f"the encoder's frames are resized with {mode}, {interpolation}; known are "
            f"{', '.join(get_args(ResizeMode))} and bicubic, bilinear"
        )
    fill = config.get("fill_color") or 0
    rgb = tuple(fill) if isinstance(fill, list | tuple) else (fill,) * 3
    unit = pixel_norm == "model"
    return Preprocessing(
        resize=resize,
        crop=height,
        interpolation=interpolation,
        mean=tuple(float(m) for m in config["mean"]) if unit else (0.0, 0.0, 0.0),
        std=tuple(float(s) for s in config["std"]) if unit else (1.0, 1.0, 1.0),
        resize_mode=cast(ResizeMode, mode),
        crop_width=None if width == height else width,
        fill=rgb if mode == "longest" else (0, 0, 0),  # only these may lack pixels
    )


def cut_views(frames: Tensor, cut: Cut, pre: Preprocessing) -> Tensor:
    """Resize whole frames, uint8 [T, height, width, 3], and crop their views, uint8 [V * T, H, W, 3].

    Resizing follows Pillow: horizontally, then vertically, each rounded to 8 bits, halves up. It differs in
    that Pillow's weights are in fixed point, and that Pillow may start vertically with frames more than twice
    as tall as wide.
    """
    frames = frames.permute(0, 3, 1, 2)
    if frames.shape[-2:] != (cut.height, cut.width):
        mode = InterpolationMode(pre.interpolation)
        scaled = frames.float()
        for height in (frames.shape[-2], cut.height):
            scaled = resize(scaled, [height, cut.width], mode, antialias=True)
            scaled = scaled.add_(0.5).floor_().clamp_(0, 255)
        frames = scaled.to(torch.uint8)
    if any(cut.padding):
        frames = pad(frames, list(cut.padding), fill=list(pre.fill))
    views, (height, width) = [], pre.shape
    for top, left, mirrored in cut.boxes:
        view = frames[..., top : top + height, left : left + width]
        views.append(view.flip(-1) if mirrored else view)
    return torch.cat(views).permute(0, 2, 3, 1)


def _cpu_name() -> str:
    import platform

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
