"""Guards against leaks: each raises a one-line error that begins with ``leak:``.

Leaks are also prevented by construction: a bank holds the rows of one split only, training runs with the test
split closed (:meth:`~.episodes.data.Data.closed`), and an :class:`~.heads.episode.Episode` holds no query
labels: only :meth:`~.heads.base.Head.losses` receives them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from clipspm.errors import ClipspmError
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.draw import Episodes
from clipspm.train_heads.evaluation.predict import evaluating, make_batch, precomputed
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.protocol import Protocol
from clipspm.train_heads.runs import Run


def guard_classes(splits: Mapping[str, str], bank: FeatureBank) -> None:
    """Refuse a test ``bank``, and one that holds a class of another split (``splits``: class -> split)."""
    strangers = [name for name in bank.pool.names if splits.get(name) != bank.pool.split]
    if strangers or bank.pool.split == "test":
        raise ClipspmError(
            f"leak: {bank.pool.split} bank holds class {(strangers or bank.pool.names)[0]!r} of split "
            f"{splits.get((strangers or bank.pool.names)[0])!r}; training must not see it"
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
    """Refuse a head whose logits depend on query labels, either passed with the losses or implied by order.

    Inductive logits of a query must not depend on the other queries either.
    """
    batch = make_batch(bank, episodes, frames, layers=head.layers, protocol=protocol)
    episode, labels = batch.episode, (batch.query_labels + 1) % episodes.spec.way
    with evaluating(head):
        logits = head.run(episode).logits
        if not _same_logits(head.run(episode, labels).logits, logits):
            raise ClipspmError("leak: the head's logits change with the labels of the queries")
        backwards = torch.arange(logits.shape[1], device=logits.device).flip(0)
        if not _same_logits(head.run(episode.mapped(query=lambda x: x[:, backwards])).logits.flip(1), logits):
            raise ClipspmError(
                "leak: the head's logits change with the order of the queries, which follows classes"
            )
        alone = episode.mapped(query=lambda x: x[:, :1])
        if protocol == "inductive" and not _same_logits(head.run(alone).logits, logits[:, :1]):
            raise ClipspmError("leak: inductive logits of a query change with the other queries")


def guard_recall(head: Head, bank: FeatureBank, episodes: Episodes, frames: int, protocol: Protocol) -> None:
    """Refuse a head whose precomputed scores are not its scores: :func:`guard_labels` looks at those only."""
    episode = make_batch(bank, episodes, frames, layers=head.layers, protocol=protocol).episode
    with evaluating(head):
        known = precomputed(head, bank, episodes, frames)
        if known is not None and not _same_logits(known.logits(episode, episodes), head.run(episode).logits):
            raise ClipspmError("leak: the head scores otherwise with what it recalls of the videos")


def _same_logits(found: Tensor, logits: Tensor) -> bool:
    """Return whether logits are equal up to rounding and one constant per query.

    Values that are not finite count as equal: :func:`~.predict.predict` refuses them.
    """
    raw = float(logits.abs().max())
    found, logits = (x.double() - x.double().mean(-1, keepdim=True) for x in (found, logits))
    allowed = 1e-3 * float(logits.abs().max()) + 64 * torch.finfo(torch.float32).eps * raw
    return bool(((found - logits).abs() > allowed).logical_not().all())
