"""A cache as stage two uses it: opened and checked once, then passed to everything that trains or scores."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipspm.cache.spec import FINAL
from clipspm.devices import resolve_device
from clipspm.errors import ClipspmError, UsageError
from clipspm.train_heads.episodes.pool import SPLITS, FeatureSource, Pool, Split, content_digest

if TYPE_CHECKING:
    import torch

    from clipspm.train_heads.episodes.bank import FeatureBank


class Data:
    """The pools and features of a cache; each split and layer is read once, when first asked for.

    ``device``: name of the device that holds features and computes. Several trainings and evaluations can
    share one instance. Nothing is loaded, not even PyTorch, before features or the device are asked for.
    """

    def __init__(self, cache: FeatureSource, device: str = "auto") -> None:
        self.cache, self.spec, self.path = cache, cache.spec, Path(cache.path)
        self._device = device
        #: the videos and classes of each split: names and counts, no features
        self.pools = {split: Pool.from_cache(cache, split) for split in SPLITS}
        #: 16 hex digits over which videos and classes are in which split
        self.content = content_digest(cache)
        self._banks: dict[Split, FeatureBank] = {}
        self._closed: set[Split] = set()

    @classmethod
    def of(cls, source: "Data | FeatureSource", device: str = "auto") -> "Data":
        """Return ``source`` if it is a :class:`Data`, else the data of that cache on ``device``.

        Raises :class:`UsageError` if it is one, and on another device than the one that is asked for.
        """
        if not isinstance(source, Data):
            return cls(source, device)
        here, asked = source.device, resolve_device(device) if device != "auto" else source.device
        if (here.type, here.index or 0) != (asked.type, asked.index or 0):
            raise UsageError(f"the features are on {source.device}, but {device} was asked for")
        return source

    @cached_property
    def device(self) -> "torch.device":
        """The device that holds features and computes; :class:`UsageError` if there is none of that name."""
        return resolve_device(self._device)

    def described(self) -> dict[str, Any]:
        """Return what a run records of its cache."""
        return {
            "path": str(self.path.resolve()),
            "fingerprint": self.spec.fingerprint,
            "content": self.content,
            "dataset": self.spec.dataset,
            "class_splits": dict(self.cache.class_splits),
        }

    def bank(
        self, split: Split, layers: Sequence[str] = (FINAL,), *, shuffle_time: bool = False
    ) -> "FeatureBank":
        """Return the features of ``split``, with these ``layers`` and perhaps others.

        ``shuffle_time`` randomises the order of each clip's frames.
        """
        if split in self._closed:
            raise ClipspmError(f"leak: the {split} split is asked for while a head is trained and selected")
        from clipspm.train_heads.episodes.bank import FeatureBank

        bank = self._banks.get(split)
        missing = [layer for layer in layers if bank is None or layer not in bank.layers]
        if missing or bank is None:
            sources = {layer: self._mapped(layer) for layer in missing}
            more = FeatureBank.read(
                self.pools[split], sources, self._text(), where=self.path, device=self.device
            )
            bank = bank.joined(more) if bank else more
        self._banks[split] = bank
        return bank.shuffled() if shuffle_time else bank

    def _text(self) -> Any:
        """The class texts, [C, D]; zeros where the encoder has none, which no head reads."""
        if self.spec.has_text:
            return self.cache.text()
        import numpy as np

        return np.zeros((len(self.cache.class_names), self.spec.dims[FINAL]), np.float32)

    def _mapped(self, layer: str) -> Any:
        cached = self.spec.layers
        if layer not in cached:
            wanted = [*(known for known in cached if known != FINAL), layer, FINAL]
            raise UsageError(
                f"{self.path} has no layer {layer!r}, it holds {', '.join(cached)}: "
                f"`clipspm extract --layers {','.join(wanted)}` caches it"
            )
        return self.cache.mapped(layer)

    @contextmanager
    def closed(self, split: Split) -> Iterator[None]:
        """Refuse access to the features of ``split`` within the block."""
        was_closed = split in self._closed
        self._closed.add(split)
        try:
            yield
        finally:
            if not was_closed:
                self._closed.discard(split)

    def coverage(self) -> dict[Split, tuple[int, int]]:
        """Return, by split, how many videos are here and how many a complete data set has."""
        counts = {split: self.cache.coverage(split) for split in SPLITS}
        return {split: (count.found, count.expected) for split, count in counts.items()}
