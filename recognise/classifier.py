"""A head as a scikit-learn classifier: fitted to the features of a few labelled videos, it names others.

Shapes: N videos, T frames, D width of all layers together, S supports, C classes.
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
from clipspm.train_heads.evaluation.predict import evaluating
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.registry import build_head, head_entry

#: standard deviation of the prior of the logarithm of the temperature
_SPREAD = 0.5
#: temperatures that are tried, in octaves around 1
_TEMPERATURES = 2.0 ** np.linspace(-3, 3, 97)
#: queries, or episodes, that are scored at a time
_BATCH = 64


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Classifies features of videos by those of a few labelled ones.

    ``head``: name of a head that works as it is (``evidence``, ``frame-cosine``, ...), or a trained
    :class:`Head`. ``layers``: the width of each layer in the features, in their order, that of ``final`` among
    them; none: all of it is ``final``. ``texts``: features of the class names, [C, D of ``final``], in the order
    of the sorted labels; none: the head is used without. ``temperature``: divides the logits; none: where each
    class has two videos or more, as suits them, each left out in turn, and 1 otherwise.

    Features are [N, T, D], or [N, D] for videos of one frame. A query's scores do not depend on other queries.

    Attributes: ``classes_``; ``temperature_``; ``head_``; ``n_features_in_``: D for [N, D].
    """

    def __init__(
        self,
        head: str | Head = "evidence",
        *,
        layers: Mapping[str, int] | None = None,
        texts: npt.ArrayLike | None = None,
        temperature: float | None = None,
    ) -> None:
        self.head = head
        self.layers = layers
        self.texts = texts
        self.temperature = temperature

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:  # noqa: N803
        """Keep ``X`` [N, T, D] as supports, with their labels ``y`` [N]. Raises ValueError on one class."""
        found, labels = validate_data(self, X, y, allow_nd=True, dtype=[np.float32, np.float64])
        check_classification_targets(labels)
        self.classes_, rows = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"found one class, {self.classes_[0]!r}; needed two or more")
        self._shape = found.shape[1:]
        self._supports = self._layered(found)
        self._labels = torch.from_numpy(rows)
        frames = next(iter(self._supports.values())).shape[1]
        widths = {name: x.shape[-1] for name, x in self._supports.items()}
        self.head_ = self._head(widths, frames)
        self._text = (
            torch.zeros(len(self.classes_), widths[FINAL])
            if self.texts is None
            else torch.as_tensor(np.asarray(self.texts, dtype=np.float32))
        )
        self.temperature_ = self._fitted_temperature() if self.temperature is None else self.temperature
        return self

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:  # noqa: N803
        """Return the likeliest class of each of ``X`` [N, T, D]: [N]."""
        best = self.logits(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:  # noqa: N803
        """Return the probability of each class, [N, C], in the order of ``classes_``."""
        logits = self.logits(X)
        found = torch.from_numpy(logits).double() / self.temperature_
        return np.asarray(found.softmax(1).numpy())

    def logits(self, X: npt.ArrayLike) -> npt.NDArray[np.float32]:  # noqa: N803
        """Return the head's logits, [N, C], before the temperature."""
        return self.evidence(X)[0]

    def evidence(self, X: npt.ArrayLike) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:  # noqa: N803
        """Return the logits, [N, C], and what each piece of evidence said, each [N, C]."""
        check_is_fitted(self)
        found = validate_data(self, X, allow_nd=True, dtype=[np.float32, np.float64], reset=False)
        if found.shape[1:] != self._shape:
            raise ValueError(f"found features of shape {found.shape[1:]}; fitted to {self._shape}")
        queries = self._layered(found)
        logits, pieces = [], []
        with evaluating(self.head_):
            for start in range(0, len(found), _BATCH):
                part = {name: x[start : start + _BATCH] for name, x in queries.items()}
                output = self.head_.run(self._episode(part))
                logits.append(output.logits)
                pieces.append(output.evidence)
        names = pieces[0]
        return torch.cat(logits).numpy(), {n: torch.cat([p[n] for p in pieces]).numpy() for n in names}

    def left_out(self) -> tuple[Tensor, Tensor]:
        """Score each support against the others: logits [N, C] and labels [N].

        Those that are alone in their class are left out.
        """
        counts = torch.bincount(self._labels, minlength=len(self.classes_))
        rows = torch.nonzero(counts[self._labels] > 1).flatten()
        found = []
        every = torch.arange(len(self._labels))
        with evaluating(self.head_):
            for row in rows.tolist():
                rest = every != row
                episode = Episode(
                    {name: x[rest] for name, x in self._supports.items()},
                    {name: x[row : row + 1] for name, x in self._supports.items()},
                    self._labels[rest],
                    self._text,
                )
                found.append(self.head_.run(episode).logits)
        return (torch.cat(found) if found else torch.empty(0, len(self.classes_))), self._labels[rows]

    def _head(self, widths: Mapping[str, int], frames: int) -> Head:
        if isinstance(self.head, Head):
            return self.head.eval()
        entry = head_entry(self.head)
        silent = self.texts is None and entry.settings is not None and "text" in entry.settings
        others = {name: width for name, width in widths.items() if name != FINAL}
        return build_head(
            self.head,
            dim=widths[FINAL],
            frames=frames,
            layer_dims=others,
            config={"text": False} if silent else None,
        ).eval()

    def _episode(self, queries: Mapping[str, Tensor]) -> Episode:
        return Episode(self._supports, queries, self._labels, self._text)

    def _layered(self, found: npt.NDArray[Any]) -> dict[str, Tensor]:
        """Cut features [N, T, D] or [N, D] into layers, each [N, T, width]."""
        x = torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))
        x = x.unsqueeze(1) if x.ndim == 2 else x
        if x.ndim != 3:
            raise ValueError(f"found features of shape {tuple(found.shape)}; needed [N, T, D] or [N, D]")
        widths = dict(self.layers) if self.layers is not None else {FINAL: x.shape[-1]}
        if FINAL not in widths or sum(widths.values()) != x.shape[-1]:
            raise ValueError(
                f"layers {widths}: they need {FINAL!r}, and to add up to the width of the features, {x.shape[-1]}"
            )
        return dict(zip(widths, x.split(list(widths.values()), dim=-1), strict=True))

    def _fitted_temperature(self) -> float:
        logits, labels = self.left_out()
        counts = torch.bincount(self._labels)
        if not len(labels) or int(counts.min()) < 2:
            return 1.0
        tried = torch.from_numpy(_TEMPERATURES)[:, None, None]
        likely = (logits.double() / tried).log_softmax(-1)[:, torch.arange(len(labels)), labels].sum(1)
        prior = -((tried.flatten().log() / _SPREAD) ** 2) / 2
        return float(tried.flatten()[(likely + prior).argmax()])
