"""Features of single clips, as extraction makes them, and kept by what is in the file.

Shapes: N clips, T frames, D the widths of all layers together.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from clipspm.cache.disk import reading, replacing
from clipspm.cache.home import home
from clipspm.cache.spec import CacheSpec
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.config import MEMORY, Precision
from clipspm.extract.decode import read_steadily
from clipspm.extract.decode_pool import DecodePool
from clipspm.extract.demo import tiny_clip_source
from clipspm.extract.encoder import Encoder
from clipspm.extract.failures import DecodeError
from clipspm.extract.layers import parse_layers, parse_tokens
from clipspm.extract.models import LOCAL_DIR, check_model, shown_name
from clipspm.extract.plan import DEFAULT_MODEL, DEFAULT_PRETRAINED
from clipspm.extract.prompts import fill, load_templates, spoken
from clipspm.extract.shards import Batcher, clip_settings
from clipspm.extract.suffixes import is_frame_name
from clipspm.extract.views import still
from clipspm.progress import track

Features = npt.NDArray[np.float32]

#: what features depend on, beside how precisely they were computed
_ESSENTIAL = (
    *("weights_sha256", "architecture_sha256", "layers", "dims", "frames"),
    *("resize", "crop", "interpolation", "mean", "std", "resize_mode", "crop_width", "fill"),
)
#: frames of a long video that are encoded at a time
_STEADY = 32


class ClipEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns paths of videos (or of folders of frames) into features, as ``clipspm extract`` does.

    ``model``, ``pretrained``, ``layers``, ``tokens``, ``frames``, ``resize``, ``pixel_norm``, ``precision``,
    ``device``: as there. ``prompts``: for :meth:`encode_text`, a named set, a file, or templates;
    ``clean_names``: whether class names become words. ``workers``: decode processes; ``timeout`` in seconds
    and ``memory`` in GiB for each video. ``store``: folder to keep features in, by SHA-256 of the files;
    none: ``$CLIPSPM_HOME/features``; False: they are not kept.

    Attributes after :meth:`fit`: ``layers_``: the width of each layer, in the order of the last axis.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        pretrained: str | None = None,
        *,
        layers: str = "auto",
        tokens: str = "cls,mean",
        frames: int = 8,
        resize: int | None = None,
        pixel_norm: Literal["model", "none"] = "model",
        prompts: str | Sequence[str] = "photo",
        clean_names: bool = True,
        precision: Precision = "fp32",
        device: str | None = None,
        workers: int | None = None,
        timeout: float = 60.0,
        memory: float = MEMORY,
        store: str | Path | Literal[False] | None = None,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.layers = layers
        self.tokens = tokens
        self.frames = frames
        self.resize = resize
        self.pixel_norm = pixel_norm
        self.prompts = prompts
        self.clean_names = clean_names
        self.precision = precision
        self.device = device
        self.workers = workers
        self.timeout = timeout
        self.memory = memory
        self.store = store

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Load the encoder, unless it is loaded; the arguments are not looked at."""
        if getattr(self, "_loaded_with", None) == self.get_params():
            return self
        pretrained = self.pretrained
        if pretrained is None and self.model == DEFAULT_MODEL:
            pretrained = DEFAULT_PRETRAINED
        check_model(self.model, pretrained)
        prompts = self.prompts
        self._templates = load_templates(prompts) if isinstance(prompts, str) else tuple(prompts)
        self.encoder_ = Encoder(
            self.model,
            pretrained,
            layers=parse_layers(self.layers),
            tokens=parse_tokens(self.tokens),
            device=self.device,
            precision=self.precision,
            resize=self.resize,
            pixel_norm=self.pixel_norm,
        )
        self.layers_ = dict(self.encoder_.dims)
        self._spec = self._make_spec()
        self._loaded_with = self.get_params()
        return self

    @classmethod
    def like(cls, spec: CacheSpec, **given: Any) -> Self:
        """Return an encoder, not yet fitted, that makes features like those of a cache of ``spec``.

        ``given``: parameters to differ in, such as ``model``, the place of an encoder that was read from a
        folder. Raises :class:`UsageError` where that place is not known.
        """
        bundled = tiny_clip_source()
        model = bundled if spec.model == shown_name(bundled, None) else spec.model
        if model != bundled and model.startswith(LOCAL_DIR) and "model" not in given:
            raise UsageError(f"the encoder was {model}: say where it is with --model {LOCAL_DIR}PATH")
        settings = {
            "model": model,
            "pretrained": None if "model" in given else spec.pretrained or None,
            "layers": ",".join(spec.layers),
            "frames": spec.frames,
            "resize": spec.resize,
            "pixel_norm": "none" if spec.std == (1.0, 1.0, 1.0) else "model",
            "prompts": spec.prompts,
            "clean_names": spec.names == "cleaned",
            "precision": spec.precision,
        }
        return cls(**{**settings, **given})

    def check_like(self, spec: CacheSpec) -> None:
        """Raise :class:`ClipspmError` unless features are like those of the cache that ``spec`` describes."""
        check_is_fitted(self)
        for name in _ESSENTIAL:
            here, there = getattr(self._spec, name), getattr(spec, name)
            if here != there:
                raise ClipspmError(
                    f"{self.model} makes other features than the cache has: {name} is {here}, there {there}"
                )

    def transform(self, X: Iterable[str | Path]) -> Features:
        """Return the features of the clips at the paths ``X``, [N, T, D].

        Raises :class:`DecodeError` for the first one that cannot be read.
        """
        check_is_fitted(self)
        found = [np.empty((0, self.frames, sum(self.layers_.values())), np.float32)]
        for clip in self.encode(X):
            if isinstance(clip, DecodeError):
                raise clip
            found.append(clip[np.newaxis])
        return np.concatenate(found)

    def encode(self, paths: Iterable[str | Path]) -> list[Features | DecodeError]:
        """Return the features of each of ``paths``, [T, D], or why it could not be read."""
        check_is_fitted(self)
        places = [Path(path) for path in paths]
        kept: dict[int, Features | DecodeError] = {}
        new: dict[str, list[int]] = {}
        for row, place in enumerate(places):
            try:
                digest = content_digest(place)
            except OSError as error:
                kept[row] = DecodeError("missing", place, error.strerror or str(error))
                continue
            known = self._load(digest)
            if known is not None:
                kept[row] = known
            else:
                new.setdefault(digest, []).append(row)
        firsts = [places[rows[0]] for rows in new.values()]
        for (digest, rows), found in zip(new.items(), self._read(firsts), strict=True):
            if not isinstance(found, DecodeError):
                self._keep(digest, found)
            kept.update(dict.fromkeys(rows, found))
        return [kept[row] for row in range(len(places))]

    def encode_steadily(self, path: str | Path, step: float) -> Features:
        """Return the features of what a video shows every ``step`` seconds, [frames, D].

        Raises :class:`DecodeError`.
        """
        check_is_fitted(self)
        settings, spec = clip_settings(self._spec, flip=False), replace(self._spec, frames=1)
        batcher = Batcher(self.encoder_, _STEADY, spec)
        for frame in read_steadily(path, step, each=lambda whole: still(whole, settings)):
            batcher.add(torch.from_numpy(frame).unsqueeze(0))
        batcher.finish()
        layers = [x[:, 0, 0].astype(np.float32) for x in batcher.features().values()]
        if not layers:
            raise DecodeError("too short", Path(path), f"it shows nothing for half of {step:g} s")
        return np.concatenate(layers, axis=-1)

    def encode_text(self, names: Sequence[str]) -> Features | None:
        """Return the features of class names, averaged over the prompts, [C, D of final].

        None if the encoder has no text tower. Warns of prompts that are longer than the text tower reads.
        """
        said = [spoken(name) for name in names] if self.clean_names else list(names)
        encoder = self.encoder_
        if encoder.source.tokenizer is None:
            return None
        each = encoder.encode_text(said, self._templates)
        for text in encoder.cut([fill(template, name) for name in said for template in self._templates]):
            message = f"cut to the {encoder.reads} tokens that {encoder.source.name} reads: {text!r}"
            warnings.warn(message, stacklevel=2)
        return np.asarray(each.mean(1, dtype=np.float32))

    def _read(self, places: Sequence[Path]) -> Iterator[Features | DecodeError]:
        """Decode clips, several at a time, and encode each by itself."""
        if not places:
            return
        spec, encoder = self._spec, self.encoder_
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(self.workers or cores, len(places))
        settings = clip_settings(spec, flip=False)
        with DecodePool(settings, workers=workers, timeout=self.timeout, memory=self.memory) as decoders:
            clips = decoders.stream((place, place.name) for place in places)
            for clip in track(clips, "reading clips", len(places), "clips"):
                if isinstance(clip, DecodeError):
                    yield clip
                    continue
                batcher = Batcher(encoder, spec.frames, spec)
                batcher.add(encoder.views(clip))
                batcher.finish()
                layers = [x[0, 0].astype(np.float32) for x in batcher.features().values()]
                yield np.concatenate(layers, axis=-1)

    def _make_spec(self) -> CacheSpec:
        by: Literal["pillow", "torch"] = "torch" if self.encoder_.device.type == "cuda" else "pillow"
        return CacheSpec(
            **self.encoder_.identity(),
            dataset="clips",
            frames=self.frames,
            views=1,
            flip=False,
            resized_by=by,
            prompts=(),
        )

    def _folder(self) -> Path | None:
        if self.store is False:
            return None
        place = Path(self.store) if self.store is not None else home() / "features"
        return place / self._spec.fingerprint[:16]

    def _load(self, digest: str) -> Features | None:
        folder = self._folder()
        file = folder / f"{digest}.safetensors" if folder else None
        if file is None or not file.is_file():
            return None
        with reading(file, "is not a file of features"):
            found = load_file(file)["features"]
            if found.shape != (self.frames, sum(self.layers_.values())) or not np.isfinite(found).all():
                raise ValueError(f"its shape is {found.shape}")
        return found

    def _keep(self, digest: str, features: npt.NDArray[np.float32]) -> None:
        if folder := self._folder():
            with replacing(folder / f"{digest}.safetensors") as aside:
                save_file({"features": features}, aside)


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of the images in a folder of frames."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for image in sorted(path.iterdir()):
        if is_frame_name(image.name) and image.is_file():
            whole.update(
                image.name.encode("utf-8", "surrogateescape") + b"\0" + content_digest(image).encode()
            )
    return whole.hexdigest()
