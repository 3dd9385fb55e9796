"""What people read, on a terminal or in a file: names cannot move the cursor, hide text or fake a line."""

import unicodedata
from typing import Any

from rich.console import Console

#: invisible, but needed: they join letters, and people with what they do
_JOINERS = frozenset("\u200c\u200d")


def escaped(text: str) -> str:
    r"""``text`` with what is not to be seen written out, as in ``\x1b``.

    That is control characters (also the line feed), separators of lines and paragraphs, what is invisible or
    turns the direction of the text around it, and surrogates (bytes of file names that are no text).
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_written(c) if _is_hidden(c) else c for c in text)


def one_line(text: str) -> str:
    """``text`` with every run of white space as one space, :func:`escaped`."""
    return escaped(" ".join(text.split()))


def _is_hidden(character: str) -> bool:
    return character not in _JOINERS and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _written(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


class Terminal(Console):
    """A console that prints a text as one line, :func:`escaped`: no markup, no colours, no breaks."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print lines and tables."""
        super().print(*(escaped(o) if isinstance(o, str) else o for o in objects), **how)
