"""Make text safe to print: names cannot move the cursor, hide text or start a new line."""

import unicodedata
from typing import Any

from rich.console import Console

#: zero-width joiners: invisible, but some scripts and emoji need them
_JOINERS = frozenset("\u200c\u200d")


def escaped(text: str) -> str:
    r"""Return ``text`` with hidden characters written as escapes such as ``\x1b``.

    Hidden are control characters (also the line feed), line and paragraph separators, invisible characters
    and those that change the text direction, and surrogates (file name bytes that do not decode).
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape_character(c) if _is_hidden(c) else c for c in text)


def one_line(text: str) -> str:
    """Replace every run of white space by one space and escape the rest as :func:`escaped` does."""
    return escaped(" ".join(text.split()))


def _is_hidden(character: str) -> bool:
    return character not in _JOINERS and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape_character(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


class Terminal(Console):
    """A console that prints each string :func:`escaped`, without markup, highlighting or wrapping."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print strings, escaped, and other renderables such as tables."""
        super().print(*(escaped(o) if isinstance(o, str) else o for o in objects), **how)
