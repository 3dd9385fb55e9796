"""Named scores of the classes, and the logits that are made of them.

Shapes: E episodes, Q query videos, C classes (ways).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Evidence(dict[str, Tensor]):
    """Scores by name, each [E, Q, C], higher is better.

    ``kept``: what else the head computed, for its own losses.
    """

    def __init__(self, scores: Mapping[str, Tensor], kept: Any = None) -> None:
        super().__init__(scores)
        self.kept = kept


def weighted_sum(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Add up ``scores``, each [E, Q, C], times their ``weights`` (1 where not named): logits [E, Q, C]."""
    if not scores:
        raise ValueError("scores: found no evidence; needed one named score or more")
    first, *rest = (score * weights.get(name, 1.0) for name, score in scores.items())
    return sum(rest, start=first)
