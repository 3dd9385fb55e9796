"""Guards against leaks: each refuses to go on, in one line that begins with ``leak:``.

What they guard besides: a bank holds the rows of one split only, training runs with the test split closed
(:meth:`~.episodes.bank.Banks.closed`), and only training losses are handed query labels
(:meth:`~.evaluation.predict.EpisodeBatch.through`).
"""

from dataclasses import replace

import torch
from torch import Tensor

from clipspm.errors import ClipspmError
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.episodes.pool import FeatureSource
from clipspm.train_heads.evaluation.predict import EpisodeBatch, evaluating, make_batch
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.protocol import Protocol
from clipspm.train_heads.runs import Run


def guard_classes(cache: FeatureSource, bank: FeatureBank) -> None:
    """Refuse to go on if ``bank`` (of ``train`` or ``val``) holds a class that is not of its split."""
    strangers = [n for n in bank.pool.names if cache.class_splits.get(n) != bank.pool.split]
    if strangers or bank.pool.split == "test":
        raise ClipspmError(
            f"leak: {bank.pool.split} bank holds class {(strangers or bank.pool.names)[0]!r} of split "
            f"{cache.class_splits.get((strangers or bank.pool.names)[0])!r}; training must not see it"
        )


def guard_test_classes(run: Run, bank: FeatureBank) -> None:
    """Refuse to test on classes that ``run`` trained on or selected its weights on."""
    if run.imported or bank.pool.dataset != run.cache["dataset"]:
        return
    seen = {name: split for name, split in run.cache["class_splits"].items() if split in ("train", "val")}
    leaked = [name for name in bank.pool.names if name in seen]
    if leaked:
        raise ClipspmError(
            f"leak: test class {leaked[0]!r} was in the {seen[leaked[0]]} split when {run.path} was trained"
        )


def guard_labels(head: Head, bank: FeatureBank, episodes: Episodes, frames: int, protocol: Protocol) -> None:
    """Refuse a head whose logits depend on query labels: handed to it, told by order, or by what it recalls.

    Inductive logits of a query may not depend on the other queries either.
    """
    batch = make_batch(bank, episodes, frames, None, head.shallow_layer)
    told = replace(batch, query_labels=(batch.query_labels + 1) % episodes.spec.way)
    with evaluating(head):
        logits = batch.through(head, protocol).logits
        if not _alike(told.through(head, protocol, training=True).logits, logits):
            raise ClipspmError("leak: the head's logits change with the labels of the queries")
        backwards = _queries(batch, torch.arange(logits.shape[1], device=logits.device).flip(0))
        if not _alike(backwards.through(head, protocol).logits.flip(1), logits):
            raise ClipspmError(
                "leak: the head's logits change with the order of the queries, which follows classes"
            )
        if protocol == "inductive":
            alone = _queries(batch, torch.zeros(1, dtype=torch.long, device=logits.device))
            if not _alike(alone.through(head, protocol).logits, logits[:, :1]):
                raise ClipspmError("leak: inductive logits of a query change with the other queries")
        texts = batch.text.flatten(0, 1)
        videos = batch.support.flatten(0, 1)[: len(texts)]
        recalled = [head.recall(videos, text[: len(videos)]) for text in (texts, texts.roll(1, 0))]
        if recalled[0] is not None and recalled[1] is not None:
            known, other = (found[1] for found in recalled if found is not None)
            pairs = zip((known.frames, *known.projected), (other.frames, *other.projected), strict=True)
            if not all(torch.equal(a, b) for a, b in pairs):
                raise ClipspmError(
                    "leak: what the head recalls of a query changes with the text of its class"
                )


def _queries(batch: EpisodeBatch, which: Tensor) -> EpisodeBatch:
    """The episodes with these of their queries."""
    shallow = None if batch.query_shallow is None else batch.query_shallow[:, which]
    labels = batch.query_labels[:, which]
    return replace(batch, query=batch.query[:, which], query_labels=labels, query_shallow=shallow)


def _alike(found: Tensor, logits: Tensor) -> bool:
    """Whether classes are told apart alike, but for rounding; what is not finite is for another check."""
    raw = float(logits.abs().max())
    found, logits = (x.double() - x.double().mean(-1, keepdim=True) for x in (found, logits))
    allowed = 1e-3 * float(logits.abs().max()) + 64 * torch.finfo(torch.float32).eps * raw
    return bool(((found - logits).abs() > allowed).logical_not().all())
