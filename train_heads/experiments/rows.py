"""The rows of an ablation table: the configurations to compare."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from clipspm.errors import UsageError
from clipspm.settings import near
from clipspm.train_heads.config import DEFAULT_HEAD, TrainConfig, checked, load_recipe, resolve_config
from clipspm.train_heads.heads.registry import HEADS

MODULES = ("hsmr", "spm", "padm")
#: evidence of the pool; so are cached layers
EVIDENCE = ("look", "still", "move", "drift", "text")
_LAYER = re.compile(r"final|\d+(:[a-z]+)?")
FULL = "full"
#: stands for all other heads in a list of heads
ALL = "all"


def parse_drop(text: str) -> tuple[str, ...]:
    """Parse ``padm+spm`` -> ``("spm", "padm")``, in the order of the model; unknown names are an error.

    Modules, evidence of the pool, and cached layers (``8:mean``, ``final``) can be dropped.
    """
    parts = [part.strip().lower() for part in text.split("+")]
    known = (*MODULES, *EVIDENCE)
    for part in parts:
        if part not in known and not _LAYER.fullmatch(part):
            raise UsageError(
                f"cannot drop {part!r}{near(part, known)}; cached layers can be dropped too, and several "
                "joined with +, as in padm+spm"
            )
    return tuple(sorted(dict.fromkeys(parts), key=lambda part: (*known, part).index(part)))


def without(base: TrainConfig, parts: Sequence[str]) -> TrainConfig:
    """Return ``base`` less these modules, evidence and layers; refuse what it does not have."""
    settings = base.head_config
    missing = [part for part in parts if part not in MODULES and not settings.get("pool")]
    if missing:
        raise UsageError(f"cannot drop {missing[0]}: {base.head} has it in the default recipe only")
    gone = [part for part in parts if settings.get(part) is False or part in settings.get("without", ())]
    if gone:
        raise UsageError(f"cannot drop {gone[0]}: the configuration has it off already")
    named = [part for part in parts if part in (*MODULES, *EVIDENCE)]
    layers = tuple(part for part in parts if part not in named)
    more = {"without": (*settings.get("without", ()), *layers)} if layers else {}
    return base.with_head(**dict.fromkeys(named, False), **more)


def ablation_rows(
    base: TrainConfig,
    *,
    drops: Sequence[str] = (),
    grid: bool = False,
    heads: Sequence[str] = (),
    extra: Mapping[str, TrainConfig] | None = None,
) -> dict[str, TrainConfig]:
    """Return rows by name: ``base`` as ``full``, one per drop (all eight with ``grid``) and head, ``extra``.

    Rows for other heads are trained as ``base`` is, with what its recipe says about that head; ``all`` among
    the ``heads`` stands for every head but that of ``base``. Raises :class:`UsageError` if there is nothing
    to compare, or for an unknown module or head.
    """
    rows = {FULL: base}
    wanted = [parse_drop(drop) for drop in drops]
    if grid:
        combinations = product((False, True), repeat=len(MODULES))
        wanted += [tuple(m for m, out in zip(MODULES, flags, strict=True) if out) for flags in combinations]
    if wanted and base.head != DEFAULT_HEAD:
        raise UsageError(f"--drop and --grid are about {DEFAULT_HEAD}; this is {base.head}")
    for parts in dict.fromkeys(wanted):
        if parts:
            rows["without " + "+".join(parts)] = without(base, parts)
    for head in (name for name in HEADS if name != base.head) if ALL in heads else heads:
        own = checked(load_recipe(base.recipe).get("heads", {}).get(head, {}).get("train", {}), base.recipe)
        settings = resolve_config(recipe=base.recipe, preset=base.preset, overrides={"head": head})
        rows[head] = replace(base, head=head, head_config=settings.head_config, preset=settings.preset, **own)
    rows |= extra or {}
    if len(rows) < 2:
        raise UsageError("nothing to compare: name a --drop, --grid, or a head --against")
    return rows
