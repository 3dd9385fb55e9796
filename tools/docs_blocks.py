"""The fenced blocks of README.md and docs/*.md: what each is, and why some are not run.

A block that is not run has a comment above it, ``<!-- not run: REASON -->``, with one of :data:`REASONS`;
``tests/test_docs.py`` runs all others. ``python -m tools.docs_blocks`` counts them.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
REASONS = {
    "benchmark": "needs the videos of a benchmark",
    "weights": "needs published weights",
    "machines": "needs GPUs or a cluster",
    "minutes": "takes minutes",
    "install": "installs packages; .ci/run does that in fresh environments",
    "listing": "is no code",
}

_BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```([^\n]*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A block of a page: its line there, language (``""``: commands), text, and why it is not run."""

    page: str
    line: int
    language: str
    text: str
    reason: str

    def commands(self) -> Iterator[list[str]]:
        """The words of each command line, without comments."""
        for line in self.text.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, without directives of Sphinx."""
    text, found = page.read_text("utf-8"), []
    for match in _BLOCK.finditer(text):
        comments, language, content = match.groups()
        if not language.startswith("{"):
            reason = re.search(r"<!-- not run: (.*?) -->", comments)
            line = text[: match.start(2)].count("\n") + 1
            name = page.relative_to(ROOT).as_posix()
            found.append(Block(name, line, language, content, reason[1] if reason else ""))
    return found


def all_blocks() -> list[Block]:
    """The blocks of all pages."""
    return [block for page in PAGES for block in blocks(page)]


def counts() -> dict[str, int]:
    """How many blocks are run, by language, and how many are not, by reason."""
    kinds = {"python": "Python, run", "json": "JSON, read"}
    said = [
        f"not run: {REASONS.get(b.reason, b.reason)}" if b.reason else kinds.get(b.language, "commands, run")
        for b in all_blocks()
    ]
    return dict(Counter(said).most_common())


if __name__ == "__main__":
    for what, count in counts().items():
        print(f"{count:4} {what}")
