"""A table of results as text on the terminal, CSV, Markdown or LaTeX (booktabs)."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table as RichTable
from rich.text import Text

_LATEX = str.maketrans(
    {
        **{c: "\\" + c for c in "&%_#${}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "−": "$-$",
        "\\": r"\textbackslash{}",
    }
)
_MARKDOWN = str.maketrans({c: "\\" + c for c in "\\|`*_<"})


def _line(text: str) -> str:
    return " ".join(text.split())


@dataclass(frozen=True)
class Table:
    """``rows`` of cells under ``columns``; a rule after every ``block`` rows.

    The first column, and a second called ``protocol``, are text; the others hold numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    block: int | None = None

    def _is_text(self, column: int) -> bool:
        return column == 0 or self.columns[column] == "protocol"

    def _ends_block(self, row: int) -> bool:
        return bool(self.block) and (row + 1) % (self.block or 1) == 0 and row + 1 < len(self.rows)

    def rich(self) -> RichTable:
        """For the terminal."""
        title, caption = Text(self.title), Text("\n".join(self.notes))  # plain text: [x] is no markup
        table = RichTable(title=title or None, caption=caption or None, caption_justify="left")
        for i, name in enumerate(self.columns):
            table.add_column(Text(name), justify="left" if self._is_text(i) else "right", overflow="fold")
        for i, row in enumerate(self.rows):
            table.add_row(*map(Text, row), end_section=self._ends_block(i))
        return table

    def csv(self) -> str:
        """Comma-separated values with a header line."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return out.getvalue()

    def markdown(self) -> str:
        """A Markdown table; title and notes as paragraphs."""
        cells = [[_line(cell).translate(_MARKDOWN) for cell in row] for row in (self.columns, *self.rows)]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        lines.insert(1, "|" + "---|" * len(self.columns))
        parts = [_line(self.title), "\n".join(lines), "\n".join(_line(note) for note in self.notes)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def latex(self) -> str:
        """A ``tabular`` with booktabs rules; title and notes as comments, notes of marks (``[a]:``) below."""
        head = [f"% {_line(line)}" for line in (self.title, *self.notes) if line]
        marks = [_line(note).translate(_LATEX) for note in self.notes if note.startswith("[")]
        body = []
        for i, row in enumerate(self.rows):
            body.append(" & ".join(_line(cell).translate(_LATEX) for cell in row) + r" \\")
            body += [r"\midrule"] * self._ends_block(i)
        kinds = "".join("l" if self._is_text(i) else "r" for i in range(len(self.columns)))
        names = " & ".join(_line(name).translate(_LATEX) for name in self.columns) + r" \\"
        return "\n".join(
            [
                *head,
                rf"\begin{{tabular}}{{{kinds}}}",
                r"\toprule",
                names,
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                *(rf"\par{{\footnotesize {mark}}}" for mark in marks),
                "",
            ]
        )
