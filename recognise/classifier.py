"""A head as a scikit-learn classifier: fitted to the features of a few labelled videos, it names others.

Shapes: N videos, T frames, D width of all layers together, C classes.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from clipspm.cache.spec import FINAL
from clipspm.recognise.unknown import Threshold, find_threshold, standing_out
from clipspm.train_heads.episodes.bank import middles
from clipspm.train_heads.episodes.draw import check_frames
from clipspm.train_heads.evaluation.predict import evaluating
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.evidence import Evidence
from clipspm.train_heads.heads.registry import build_head, head_entry

Scores = npt.NDArray[np.float32]

#: standard deviation of the prior of the temperature's logarithm, and the temperatures that are tried
_SPREAD, _TEMPERATURES = 0.5, 2.0 ** np.linspace(-3, 3, 97)
#: supports that are left out in turn, at most
_MOST_LEFT_OUT = 100
#: numbers of supports that are held at a time for that
_MOST_NUMBERS = 2**26
#: queries that are scored at a time
_BATCH = 64


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifies features of videos by those of a few labelled ones.

    ``head``: name of a head that works as it is (``evidence``, ``frame-cosine``, ...), or a trained
    :class:`Head`. ``layers``: the width of each layer in the features, in their order, ``final`` among them;
    none: all of it is ``final``. ``texts``: features of the class names, [C, D of ``final``], in the order of
    the sorted labels; none: the head is used without. ``frames``: how many of the T are read, the middles of
    equal segments; none: all. ``temperature``: divides the logits; none: 1 for heads whose logits mean
    probabilities (:attr:`Head.probable`), or where a class has one video only; otherwise as suits the videos,
    each left out in turn.

    Features are [N, T, D], or [N, D] for videos of one frame. The scores of a query depend on no other query.

    Attributes: ``classes_``; ``temperature_``; ``head_``.
    """

    def __init__(
        self,
        head: str | Head = "evidence",
        *,
        layers: Mapping[str, int] | None = None,
        texts: npt.ArrayLike | None = None,
        frames: int | None = None,
        temperature: float | None = None,
    ) -> None:
        self.head = head
        self.layers = layers
        self.texts = texts
        self.frames = frames
        self.temperature = temperature

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Keep ``X`` [N, T, D] as supports, with their labels ``y`` [N].

        Raises ValueError for one class only, or shapes that do not fit together.
        """
        found, labels = validate_data(self, X, y, allow_nd=True, dtype=[np.float32, np.float64])
        check_classification_targets(labels)
        self.classes_, rows = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"found one class, {self.classes_[0]!r}; needed two or more")
        self._shape = found.shape[1:]
        self._supports, self._labels = self._layered(found), torch.from_numpy(rows)
        width = self._supports[FINAL].shape[-1]
        self._text = torch.zeros(len(self.classes_), width)
        if self.texts is not None:
            self._text = torch.from_numpy(np.asarray(self.texts, dtype=np.float32))
        if self._text.shape != (len(self.classes_), width):
            raise ValueError(
                f"texts: found the shape {tuple(self._text.shape)}; needed {(len(self.classes_), width)}, a "
                "row for each class"
            )
        self.head_ = self._head()
        if self.texts is None and self.head_.needs_text:
            raise ValueError(f"head {self.head} needs the features of class names: found texts=None")
        self.temperature_ = self._fitted_temperature() if self.temperature is None else self.temperature
        return self

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the likeliest class of each of ``X`` [N, T, D]: [N]."""
        best = self.logits(X).argmax(1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the probability of each class, [N, C], in the order of ``classes_``."""
        logits = torch.from_numpy(self.logits(X)).double()
        return np.asarray((logits / self.temperature_).softmax(1).numpy())

    def logits(self, X: npt.ArrayLike) -> Scores:
        """Return the head's logits, [N, C], before the temperature."""
        parts = [self._score(part) for part in self._parts(X)]
        return np.concatenate([logits.numpy() for logits in parts])

    def explain(self, X: npt.ArrayLike) -> dict[str, Scores]:
        """Return what each piece of evidence adds to the logits, by name, each [N, C].

        For heads whose logits are a weighted sum of their evidence these sum to :meth:`logits`.
        """
        parts = []
        for queries in self._parts(X):
            episode = self._episode(queries).batched()
            with evaluating(self.head_):
                found = self.head_.scores(episode)
                kept = found.kept if isinstance(found, Evidence) else None
                nothing = {name: torch.zeros_like(x) for name, x in found.items()}
                parts.append(
                    {
                        name: self.head_.combine(episode, Evidence({**nothing, name: x}, kept))[0]
                        for name, x in found.items()
                    }
                )
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def left_out(self) -> tuple[Tensor, Tensor]:
        """Score each support against the others: logits [N, C] and labels [N], rows of ``classes_``.

        An episode for each, many at a time. Supports that are alone in their class are not scored, and of
        very many only some.
        """
        counts = torch.bincount(self._labels, minlength=len(self.classes_))
        rows = torch.nonzero(counts[self._labels] > 1).flatten()
        rows = rows[:: -(-len(rows) // _MOST_LEFT_OUT) or 1]
        every = torch.arange(len(self._labels))
        size = sum(x.numel() for x in self._supports.values())
        logits = [torch.empty(0, len(self.classes_))]
        step = max(1, _MOST_NUMBERS // size)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            others = torch.stack([every[every != row] for row in part])
            episodes = Episode(
                {name: x[others] for name, x in self._supports.items()},
                {name: x[part].unsqueeze(1) for name, x in self._supports.items()},
                self._labels[others],
                self._text.expand(len(part), -1, -1),
            )
            with evaluating(self.head_):
                logits.append(self.head_.run(episodes).logits[:, 0])
        return torch.cat(logits), self._labels[rows]

    def find_threshold(self) -> Threshold | None:
        """Return when a video is of none of the classes; None with two classes, or one video of each."""
        known, classes = self.left_out()
        if len(self.classes_) < 3 or not len(known):
            return None
        rows = [torch.nonzero(self._labels == c).flatten() for c in range(len(self.classes_))]
        others = [self._among(self._labels != c, own) for c, own in enumerate(rows)]
        return find_threshold(
            standing_out(known),
            classes.numpy(),
            np.concatenate([standing_out(logits) for logits in others]),
            np.concatenate([np.full(len(own), c) for c, own in enumerate(rows)]),
        )

    def _head(self) -> Head:
        if isinstance(self.head, Head):
            return self.head.eval()
        settings = head_entry(self.head).settings
        silent = self.texts is None and settings is not None and "text" in settings
        widths = {name: x.shape[-1] for name, x in self._supports.items()}
        return build_head(
            self.head,
            dim=widths.pop(FINAL),
            frames=self._supports[FINAL].shape[1],
            layer_dims=widths,
            config={"text": False} if silent else None,
        ).eval()

    def _parts(self, X: npt.ArrayLike) -> list[dict[str, Tensor]]:
        """Check ``X`` and cut it into batches of queries, by layer."""
        check_is_fitted(self)
        found = validate_data(self, X, allow_nd=True, dtype=[np.float32, np.float64], reset=False)
        if found.shape[1:] != self._shape:
            raise ValueError(f"found features of shape {found.shape[1:]}; fitted to {self._shape}")
        queries = self._layered(found)
        starts = range(0, len(found), _BATCH)
        return [{name: x[start : start + _BATCH] for name, x in queries.items()} for start in starts]

    def _layered(self, found: npt.NDArray[Any]) -> dict[str, Tensor]:
        """Cut features [N, T, D] or [N, D] into layers, each [N, T, width]."""
        x = torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))
        x = x.unsqueeze(1) if x.ndim == 2 else x
        if x.ndim != 3:
            raise ValueError(f"found features of shape {found.shape}; needed [N, T, D] or [N, D]")
        if self.frames is not None:
            check_frames(x.shape[1], self.frames)
            x = x[:, middles(x.shape[1], self.frames)]
        widths = dict(self.layers) if self.layers is not None else {FINAL: x.shape[-1]}
        if FINAL not in widths or sum(widths.values()) != x.shape[-1]:
            raise ValueError(
                f"layers: found {widths}; needed {FINAL!r} among them and the sum {x.shape[-1]}, the width "
                "of the features"
            )
        return dict(zip(widths, x.split_with_sizes(list(widths.values()), dim=-1), strict=True))

    def _episode(self, queries: Mapping[str, Tensor]) -> Episode:
        return Episode(self._supports, queries, self._labels, self._text)

    def _score(self, queries: Mapping[str, Tensor]) -> Tensor:
        with evaluating(self.head_):
            return self.head_.run(self._episode(queries)).logits

    def _among(self, chosen: Tensor, queries: Tensor) -> Tensor:
        """Return the logits of the supports in rows ``queries`` among those of the mask ``chosen``."""
        classes, labels = torch.unique(self._labels[chosen], return_inverse=True)
        supports = {name: x[chosen] for name, x in self._supports.items()}
        asked = {name: x[queries] for name, x in self._supports.items()}
        with evaluating(self.head_):
            return self.head_.run(Episode(supports, asked, labels, self._text[classes])).logits

    def _fitted_temperature(self) -> float:
        if self.head_.probable or int(torch.bincount(self._labels).min()) < 2:
            return 1.0
        logits, labels = self.left_out()
        tried = torch.from_numpy(_TEMPERATURES)
        likely = (logits.double() / tried[:, None, None]).log_softmax(-1)
        fit = likely[:, torch.arange(len(labels)), labels].sum(1)
        prior = (tried.log() / _SPREAD).square() / 2
        return float(tried[(fit - prior).argmax()])
