"""What the clips show, as tables for people and as plain values."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipspm.extract.failures import DecodeError
from clipspm.recognise.recognizer import FewShotRecognizer, Prediction
from clipspm.recognise.unknown import Threshold
from clipspm.tables import Table
from clipspm.train_heads.runs import Run

Answer = Prediction | DecodeError


def as_table(answers: Iterable[Answer], top: int, *, repeat: bool = False) -> Table:
    """Make a row for each clip and each of its ``top`` likeliest classes; ``repeat`` the clip in each."""
    rows = []
    for answer in answers:
        if isinstance(answer, DecodeError):
            rows.append((str(answer.path), f"not read: {answer.category}", "", ""))
            continue
        for rank, (name, probability) in enumerate(answer.top(top)):
            first = (str(answer.path), answer.label) if rank == 0 or repeat else ("", "")
            rows.append((*first, name, f"{100 * probability:.1f}"))
    return Table(("clip", "answer", "class", "probability, %"), rows, block=None, text=("answer", "class"))


def evidence_table(answer: Prediction, top: int) -> Table:
    """Make a row for each piece of evidence: what it adds to the logits of the ``top`` likeliest classes."""
    names = [name for name, _ in answer.top(top)]
    said = answer.evidence or {}
    rows = [(piece, *(f"{by_class[name]:+.2f}" for name in names)) for piece, by_class in said.items()]
    total = ("sum", *(f"{sum(by_class[name] for by_class in said.values()):+.2f}" for name in names))
    return Table(("evidence", *names), [*rows, total], str(answer.path))


def as_json(answers: Sequence[Answer], threshold: Threshold | None) -> dict[str, Any]:
    """Return the answers in plain JSON types; what was not read is under ``skipped``."""
    return {
        "predictions": [_plain(answer) for answer in answers if isinstance(answer, Prediction)],
        "skipped": [
            {"path": str(answer.path), "category": answer.category, "error": answer.detail}
            for answer in answers
            if isinstance(answer, DecodeError)
        ],
        "unknown": None if threshold is None else vars(threshold),
    }


def _plain(answer: Prediction) -> dict[str, Any]:
    ranked: Mapping[str, float] = dict(answer.top(len(answer.probabilities)))
    found = {"path": str(answer.path), "label": answer.label, "probabilities": ranked}
    return found if answer.evidence is None else {**found, "evidence": answer.evidence}


def about(recognizer: FewShotRecognizer, unread: int) -> str:
    """Say in a line what the answers rest on; ``unread``: how many clips of the classes could not be read."""
    counts, threshold, head = Counter(recognizer.labels_), recognizer.threshold_, recognizer.head
    fewest, most = min(counts.values()), max(counts.values())
    clips = str(fewest) if fewest == most else f"{fewest} to {most}"
    how = f"head {head.config.head} of {head.path}" if isinstance(head, Run) else "nothing trained"
    said = f"{len(counts)} classes of {clips} clips, {how}"
    if unread:
        said += f" ({unread} clips could not be read)"
    if threshold is None:
        return f"{said}; every clip is given a class"
    return (
        f"{said}; unknown: expect {threshold.false_alarms:.0%} of these classes' clips to be called so, and "
        f"{threshold.misses:.0%} of other clips to be given a class"
    )
