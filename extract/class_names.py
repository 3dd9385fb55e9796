"""Class names in files that people write: compared without case and separators, each there once."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from clipspm.errors import ClipspmError


def key_of(name: str) -> str:
    """Letters and digits of a name, casefolded: compares names without case and separators."""
    return "".join(ch for ch in name.casefold() if ch.isalnum())


def matched(classes: Collection[str], given: Collection[str], source: Path) -> dict[str, str | None]:
    """The class that each given name means, None for a name of no class.

    Names that differ only in case and separators match if that is unambiguous. Raises :class:`ClipspmError`
    for a name that can be two classes, and for a class with two names; ``source`` is the file in the message.
    """
    known: dict[str, list[str]] = {}
    for name in classes:
        if key_of(name) and name not in given:
            known.setdefault(key_of(name), []).append(name)
    found: dict[str, str | None] = {}
    named: dict[str, str] = {}
    for name in given:
        near = [name] if name in classes else known.get(key_of(name), [])
        if len(near) > 1:
            raise ClipspmError(
                f"{source}: class {name!r} can be {' or '.join(map(repr, near))}: use the exact name"
            )
        found[name] = match = near[0] if near else None
        if match in named:
            raise ClipspmError(f"{source}: {named[match]!r} and {name!r} are both class {match!r}")
        if match is not None:
            named[match] = name
    return found


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads(object_pairs_hook=...)``: ValueError for a key that occurs twice."""
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"the key {name!r} occurs {count} times")
    return dict(pairs)
