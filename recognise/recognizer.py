"""Clips in, names out: an encoder and a classifier in one, that can be saved and shared.

Shapes: N clips, C classes.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from statistics import median
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

import clipspm
from clipspm.cache.disk import check_size, make_folder, reading, replacing, write_json, write_text
from clipspm.cache.reader import open_cache
from clipspm.errors import ClipspmError
from clipspm.extract.decode import length
from clipspm.extract.failures import DecodeError
from clipspm.hub import hub_errors
from clipspm.recognise.card import model_card
from clipspm.recognise.classifier import FewShotClassifier
from clipspm.recognise.clips import ClipEncoder
from clipspm.recognise.unknown import Threshold, standing_out
from clipspm.train_heads.runs import Run

CONFIG, TENSORS, CARD = "clipspm.json", "supports.safetensors", "README.md"
#: the folder of a trained head: a run without a cache
HEAD = "clipspm_head"
#: what a clip of none of the classes is called
UNKNOWN = "unknown"
#: settings of an encoder that say where it works, not what it computes
_PLACES = ("device", "workers", "timeout", "memory", "store")


@dataclass(frozen=True)
class Prediction:
    """What one clip shows. ``label``: the likeliest class, or ``unknown``; ``probabilities``: by class.

    ``evidence``: what each piece of evidence adds to the logit of each class, where it was asked for.
    """

    path: Path
    label: str
    probabilities: Mapping[str, float]
    evidence: Mapping[str, Mapping[str, float]] | None = None

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the ``count`` likeliest classes, the likeliest first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:count]


class FewShotRecognizer(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Recognises actions from a few clips of each.

    ``encoder``: :class:`ClipEncoder`, or none for that of ``clipspm extract``. ``head``: name of a head that
    works untrained, or a trained run (:meth:`from_run`). ``unknown``: "auto" calls clips that fit none of the
    classes ``unknown``, where there are three classes or more with two clips or more; "off" never does.

    Attributes: ``classes_``; ``labels_``: of the supports; ``seconds_``: how long they are, the median, or
    None if that is not known; ``encoder_``; ``classifier_``; ``threshold_``: when a clip is unknown, or None.
    """

    def __init__(
        self,
        encoder: ClipEncoder | None = None,
        *,
        head: str | Run = "evidence",
        unknown: Literal["auto", "off"] = "auto",
    ) -> None:
        self.encoder = encoder
        self.head = head
        self.unknown = unknown

    @classmethod
    def from_run(
        cls, run: str | Path | Run, *, unknown: Literal["auto", "off"] = "auto", **encoder: Any
    ) -> Self:
        """Return a recognizer, not yet fitted to clips, with the head of a run and the encoder of its cache.

        ``encoder``: parameters of :class:`ClipEncoder` to differ in, such as ``model``, where the encoder's
        folder is. Raises :class:`ClipspmError` if the run or its cache is not there, or its encoder is not
        the one that made the cache.
        """
        run = run if isinstance(run, Run) else Run.open(run)
        if not run.cache["path"]:
            raise ClipspmError(f"{run.path} was imported and has no cache: its encoder is not known")
        spec = open_cache(run.cache["path"]).spec
        made = ClipEncoder.like(spec, **encoder).fit()
        made.check_like(spec)
        return cls(made, head=run, unknown=unknown)

    def fit(self, X: Iterable[str | Path], y: Iterable[str]) -> Self:
        """Read the clips at the paths ``X`` and keep them as supports of the classes ``y``.

        Raises :class:`DecodeError` for the first clip that cannot be read, ValueError for fewer than two
        classes.
        """
        paths = list(X)
        self.encoder_ = (self.encoder or ClipEncoder()).fit()
        return self.fit_features(self.encoder_.transform(paths), y, paths)

    def fit_features(
        self, features: npt.ArrayLike, labels: Iterable[str], paths: Iterable[str | Path] = ()
    ) -> Self:
        """Fit to what ``encoder_`` made of clips, [N, T, D], with their labels, and perhaps their paths."""
        labels = [str(label) for label in labels]
        lengths = [seconds for path in paths if (seconds := length(path)) is not None]
        self.seconds_ = median(lengths) if lengths else None
        names = sorted(set(labels))
        self._adopt(np.asarray(features), labels, self.encoder_.encode_text(names))
        self.threshold_ = self.classifier_.find_threshold() if self.unknown == "auto" else None
        return self

    def predict(self, X: Iterable[str | Path]) -> npt.NDArray[np.str_]:
        """Return the class of each clip, or ``unknown``: [N]. Raises :class:`DecodeError`."""
        return self._labels(self._read(X))

    def predict_proba(self, X: Iterable[str | Path]) -> npt.NDArray[np.float64]:
        """Return the probability of each class, [N, C], as if no clip were unknown."""
        return self.classifier_.predict_proba(self._read(X))

    def recognize(
        self, paths: Iterable[str | Path], *, explain: bool = False
    ) -> list[Prediction | DecodeError]:
        """Return what each clip shows, or why it could not be read."""
        check_is_fitted(self)
        places = [Path(path) for path in paths]
        found = self.encoder_.encode(places)
        good = {row: clip for row, clip in enumerate(found) if not isinstance(clip, DecodeError)}
        out: list[Any] = list(found)
        if good:
            features = np.stack(list(good.values()))
            labels, probabilities = self._labels(features), self.classifier_.predict_proba(features)
            evidence = self.classifier_.explain(features) if explain else {}
            for k, row in enumerate(good):
                said = {name: self._by_class(scores[k]) for name, scores in evidence.items()}
                named = self._by_class(probabilities[k])
                out[row] = Prediction(places[row], str(labels[k]), named, said if explain else None)
        return out

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all that :meth:`from_pretrained` needs except the encoder's weights, and a model card."""
        check_is_fitted(self)
        folder, encoder = Path(folder), self.encoder_
        make_folder(folder)
        supports, texts = self._held
        with replacing(folder / TENSORS) as aside:
            save_file({"supports": supports} | ({} if texts is None else {"texts": texts}), aside)
        settings = {name: value for name, value in encoder.get_params().items() if name not in _PLACES}
        if isinstance(self.head, Run):
            rmtree(folder / HEAD, ignore_errors=True)
            Run.create(folder / HEAD, self.head.config, self.head.shape, None).save_weights(
                "best", self.classifier_.head_
            )
        threshold = None if self.threshold_ is None else vars(self.threshold_)
        content = {
            "clipspm": clipspm.__version__,
            "encoder": settings,
            "weights_sha256": encoder.encoder_.source.weights_sha256,
            "layers": encoder.layers_,
            "head": self.head.config.head if isinstance(self.head, Run) else self.head,
            "trained": isinstance(self.head, Run),
            "unknown": self.unknown,
            "labels": self.labels_,
            "seconds": self.seconds_,
            "temperature": self.classifier_.temperature_,
            "threshold": threshold,
        }
        write_json(folder / CONFIG, content)
        write_text(folder / CARD, model_card(content))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, encoder: ClipEncoder | None = None) -> Self:
        """Open what :meth:`save_pretrained` wrote: a folder, or a repository of the Hugging Face hub.

        ``encoder``: in place of the one that was saved, where its weights have moved. Raises
        :class:`ClipspmError` for files that make no sense, or another encoder's weights.
        """
        folder = Path(source)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            with hub_errors(str(source)):
                folder = Path(
                    snapshot_download(str(source), allow_patterns=[CONFIG, TENSORS, CARD, f"{HEAD}/*"])
                )
        with reading(folder / CONFIG, "is not a saved recognizer"):
            check_size(folder / CONFIG)
            content = json.loads((folder / CONFIG).read_text("utf-8"))
            encoder = encoder or ClipEncoder(**content["encoder"])
            head = Run.open(folder / HEAD) if content["trained"] else content["head"]
            made = cls(encoder, head=head, unknown=content["unknown"])
            labels, sha256 = [str(label) for label in content["labels"]], str(content["weights_sha256"])
            temperature = float(content["temperature"])
            seconds = None if content["seconds"] is None else float(content["seconds"])
            threshold = content["threshold"] and Threshold(**content["threshold"])
        made.encoder_ = encoder.fit()
        if made.encoder_.encoder_.source.weights_sha256 != sha256:
            raise ClipspmError(
                f"{source} was made with other weights than those of {encoder.model}: name its encoder"
            )
        with reading(folder / TENSORS, "is not a saved recognizer"):
            check_size(folder / TENSORS)
            held = load_file(folder / TENSORS)
            made._adopt(held["supports"], labels, held.get("texts"), temperature)
        made.threshold_, made.seconds_ = threshold, seconds
        return made

    def push_to_hub(self, repo_id: str, *, private: bool = False, folder: str | Path | None = None) -> str:
        """Save, and upload to the Hugging Face hub. Returns the address."""
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        with hub_errors(repo_id), TemporaryDirectory() as aside:
            self.save_pretrained(folder or aside)
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder or aside)))

    def _adopt(
        self,
        features: npt.NDArray[Any],
        labels: list[str],
        texts: npt.NDArray[Any] | None,
        temperature: float | None = None,
    ) -> None:
        self.labels_, self._held = labels, (features, texts)
        run = self.head if isinstance(self.head, Run) else None
        head, frames = (run.load_head(), run.shape.frames) if run else (str(self.head), None)
        self.classifier_ = FewShotClassifier(
            head, layers=self.encoder_.layers_, texts=texts, frames=frames, temperature=temperature
        ).fit(features, labels)
        self.classes_ = self.classifier_.classes_

    def _read(self, paths: Iterable[str | Path]) -> npt.NDArray[np.float32]:
        check_is_fitted(self)
        return self.encoder_.transform(paths)

    def _labels(self, features: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
        logits = self.classifier_.logits(features)
        labels = np.asarray(self.classes_[logits.argmax(1)], dtype=np.str_)
        if self.threshold_ is None:
            return labels
        return np.where(standing_out(logits) < self.threshold_.value, UNKNOWN, labels)

    def _by_class(self, values: npt.NDArray[Any]) -> dict[str, float]:
        return {str(name): float(value) for name, value in zip(self.classes_, values, strict=True)}
