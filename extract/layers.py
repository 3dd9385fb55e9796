"""The names of layers: which blocks or stages of an image tower are cached, and what of a block's tokens.

``final``; a number (of a ViT's block: its CLS token; of a stage of another tower: its pooled map); of a ViT
also ``8:cls`` and ``8:mean``, the CLS token and the mean of the patch tokens of block 8.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clipspm.cache.spec import FINAL
from clipspm.errors import UsageError

#: stands for ``final`` and the blocks or stages of :func:`spread`
AUTO = "auto"
CLS, MEAN = "cls", "mean"
TOKENS = (CLS, MEAN)

_NAME = re.compile(r"([0-9]{1,5})(?::(cls|mean))?")


@dataclass(frozen=True)
class Tower:
    """What an image tower has: ``depth`` blocks of tokens (a ViT), perhaps with a CLS token, or stages."""

    name: str
    depth: int
    tokens: bool
    cls: bool = False


def parse_layers(text: str) -> tuple[str, ...]:
    """``"8:mean,3,final"`` -> layer names by number, ``auto`` first, ``final`` always included and last."""
    names = set()
    for part in text.split(","):
        name = part.strip()
        if name in (FINAL, AUTO):
            names.add(name)
        elif found := _NAME.fullmatch(name):
            names.add(_name(int(found[1]), found[2]))
        else:
            raise UsageError(
                f"--layers {text!r}: {name!r} is neither a layer number nor 'final' (nor auto, 8:cls, 8:mean)"
            )
    return _sorted({*names, FINAL})


def parse_tokens(text: str) -> tuple[str, ...]:
    """``"cls,mean"`` -> the summaries of a block's tokens."""
    given = {part.strip() for part in text.split(",")}
    if wrong := sorted(given - set(TOKENS)):
        raise UsageError(f"--tokens {text!r}: {wrong[0]!r} is neither cls nor mean")
    return tuple(token for token in TOKENS if token in given)


def number_of(layer: str) -> int:
    """The number of a layer's block or stage."""
    return int(layer.partition(":")[0])


def token_of(layer: str) -> str:
    """What a layer's name says is taken of its block: ``cls``, ``mean``, or the empty string."""
    return layer.partition(":")[2]


def spread(tower: Tower) -> tuple[int, ...]:
    """What ``auto`` takes besides ``final``: of 12 blocks 5, 8 and 11; of 5 stages the last two."""
    if tower.tokens:
        return tuple(sorted({max(0, tower.depth * quarters // 4 - 1) for quarters in (2, 3, 4)}))
    return tuple(range(max(0, tower.depth - 2), tower.depth))


def settle(layers: Sequence[str], tokens: Sequence[str], tower: Tower) -> tuple[str, ...]:
    """The layers to take of ``tower``, with ``auto`` replaced by blocks with ``tokens``, or by stages.

    Raises :class:`UsageError` for a layer that the tower does not have.
    """
    names = {layer for layer in layers if layer != AUTO}
    if AUTO in layers:
        kept = [token for token in tokens if token != CLS or tower.cls] if tower.tokens else [None]
        if not kept:
            raise UsageError(f"--tokens cls: {tower.name} has no CLS token: use --tokens mean")
        names |= {_name(number, token) for number in spread(tower) for token in kept}
    for layer in sorted(names - {FINAL}):
        number, token = number_of(layer), token_of(layer)
        if number >= tower.depth:
            last = tower.depth - 1
            raise UsageError(f"--layers: {tower.name} has no layer {layer}; it has 0 to {last}, and final")
        if token and not tower.tokens:
            raise UsageError(f"--layers: {tower.name} has pooled maps, no tokens: {number}, not {layer}")
        if token == CLS and not tower.cls:
            raise UsageError(f"--layers: {tower.name} has no CLS token: {number}:mean, not {layer}")
    return _sorted(names)


def _name(number: int, token: str | None) -> str:
    return f"{number}:{token}" if token else str(number)


def _sorted(names: set[str]) -> tuple[str, ...]:
    """By number, then by token; ``auto`` first and ``final`` last."""

    def place(name: str) -> tuple[float, str]:
        ends = {AUTO: -1.0, FINAL: float("inf")}
        return (ends[name], "") if name in ends else (number_of(name), token_of(name))

    return tuple(sorted(names, key=place))
