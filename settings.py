"""Settings by name: values as their field's type, and close names where one is unknown."""

import difflib
import math
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

#: other people's words for a setting, and ours
SYNONYMS = {"shot": "shots", "ways": "way", "learning_rate": "lr", "batch_size": "batch", "steps": "episodes"}

#: digits of a number that a person writes
_LONGEST_NUMBER = 100
#: how a value is shown in a message: a nested one can be endless
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 80, 80, 80


def from_yaml(text: str) -> Any:
    """The value that a person wrote as YAML; ValueError in one line for what is none.

    A name is there once, and numbers are short: YAML's of base 60, and long ones, take minutes to read.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses what another reader of the file could take for something else."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := [name for name in names if isinstance(name, str) and names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is there twice")
        return dict(loader.construct_mapping(node, deep=True))

    def number(read: Any) -> Any:
        def short(loader: Any, node: Any) -> Any:
            if len(node.value) > _LONGEST_NUMBER:
                raise ValueError(f"a number of {len(node.value)} digits")
            return read(loader, node)

        return short

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    for kind, read in (("int", Loader.construct_yaml_int), ("float", Loader.construct_yaml_float)):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", number(read))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from error


def from_pairs(pairs: Iterable[str], example: str) -> dict[str, Any]:
    """``["a=1"]`` -> ``{"a": 1}``, values as :func:`from_yaml` reads them; ValueError shows ``example``."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r}: expected KEY=VALUE, for example {example}")
        try:
            found[key.strip()] = from_yaml(value)
        except ValueError as error:
            raise ValueError(f"{pair!r}: {value!r} is not a value") from error
    return found


def near(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?``, or ``; known: ...`` where nothing is close."""
    names = list(known)
    close = [SYNONYMS[name]] if SYNONYMS.get(name) in names else []
    close += [n for n in difflib.get_close_matches(name, names, n=3, cutoff=0.65) if n not in close]
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(sorted(names))}"


def typed(values: Mapping[str, Any], hints: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """``values`` with each as the type that ``hints`` gives its name.

    ``where`` goes on after "setting NAME" in a message (" in my.yaml"). Raises ValueError in one
    line for an unknown name (with close ones) and for a value of another kind.
    """
    out = {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"unknown setting {name!r}{where}{near(str(name), hints)}")
        try:
            out[name] = coerced(value, hints[name])
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"setting {name}{where}: found {_SHORT.repr(value)}; {error}") from error
    return out


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values``; raises ValueError in one line for a number that is NaN or infinite."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"setting {name}: found {value}; needed a finite number")
    return values


def coerced(value: Any, hint: Any) -> Any:
    """``value`` as the type ``hint``; what says the same thing is accepted (YAML reads ``1e-5`` as text).

    Raises ValueError or TypeError that says what is needed.
    """
    if hint is Any:
        return value
    origin = get_origin(hint)
    if origin in (UnionType, Union):
        return _one_of(value, get_args(hint))
    if hint in (list, dict) or origin in (list, Sequence):
        kind: Any = dict if hint is dict else list
        if isinstance(value, str) or not isinstance(value, Mapping if kind is dict else Sequence):
            raise ValueError("needed a mapping" if kind is dict else "needed a list")
        inner = get_args(hint)
        return [coerced(v, inner[0]) for v in value] if inner else kind(value)
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(f"needed one of {', '.join(map(str, get_args(hint)))}")
        return value
    if origin is tuple:
        kinds = get_args(hint)
        if isinstance(value, str) or not hasattr(value, "__len__"):
            raise ValueError("needed a list, like [a, b]")
        if len(kinds) == 2 and kinds[1] is ...:
            return tuple(coerced(v, kinds[0]) for v in value)
        if len(value) != len(kinds):
            raise ValueError(f"needed a list of {len(kinds)}")
        return tuple(coerced(v, kind) for v, kind in zip(value, kinds, strict=True))
    if origin is not None:
        if not isinstance(value, Mapping):
            raise ValueError("needed a mapping")
        return dict(value)
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError("needed true or false")
        return value
    if hint is Path:
        if not isinstance(value, str | os.PathLike):
            raise ValueError("needed a path")
        return Path(value)
    if hint in (int, float):
        return _number(value, whole=hint is int)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # YAML reads a name like 3 as a number
    if not isinstance(value, str):
        raise ValueError("needed a name")
    return value


def _one_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    """``value`` as the first of ``kinds`` that it can be."""
    if NoneType in kinds and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    *firsts, last = [kind for kind in kinds if kind is not NoneType]
    for kind in firsts:
        with suppress(ValueError, TypeError):
            return coerced(value, kind)
    return coerced(value, last)


def _number(value: Any, *, whole: bool) -> int | float:
    needed = "needed a whole number" if whole else "needed a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(needed)
    try:
        number = float(value)
    except ValueError:
        raise ValueError(needed) from None
    if not whole:
        return number
    if not math.isfinite(number) or number != int(number):
        raise ValueError(needed)
    return value if isinstance(value, int) else int(number)
