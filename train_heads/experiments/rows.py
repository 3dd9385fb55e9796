"""The rows of an ablation table: the configurations to compare."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from clipspm.errors import UsageError
from clipspm.settings import near
from clipspm.train_heads.config import DEFAULT_HEAD, TrainConfig, checked, load_recipe, resolve_config
from clipspm.train_heads.heads.registry import HEADS

MODULES = ("hsmr", "spm", "padm")
FULL = "full"
#: stands for all other heads in a list of heads
ALL = "all"


def parse_drop(text: str) -> tuple[str, ...]:
    """Parse ``padm+spm`` -> ``("spm", "padm")``, in the order of the model; unknown names are an error."""
    parts = [part.strip().lower() for part in text.split("+")]
    for part in parts:
        if part not in MODULES:
            raise UsageError(
                f"cannot drop {part!r}{near(part, MODULES)}; join several with +, as in padm+spm"
            )
    return tuple(name for name in MODULES if name in parts)


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
        already_off = [part for part in parts if base.head_config.get(part) is False]
        if already_off:
            raise UsageError(f"cannot drop {already_off[0]}: the configuration has it off already")
        if parts:
            rows["without " + "+".join(parts)] = base.with_head(**dict.fromkeys(parts, False))
    for head in (name for name in HEADS if name != base.head) if ALL in heads else heads:
        own = checked(load_recipe(base.recipe).get("heads", {}).get(head, {}).get("train", {}), base.recipe)
        settings = resolve_config(recipe=base.recipe, preset=base.preset, overrides={"head": head})
        rows[head] = replace(base, head=head, head_config=settings.head_config, preset=settings.preset, **own)
    rows |= extra or {}
    if len(rows) < 2:
        raise UsageError("nothing to compare: name a --drop, --grid, or a head --against")
    return rows
