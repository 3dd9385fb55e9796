"""A table of results as text on the terminal, CSV, LaTeX (booktabs) or plain values."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table as RichTable

_LATEX = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "_": r"\_",
        "#": r"\#",
        "$": r"\$",
        "±": r"$\pm$",
        "−": "$-$",
        "\\": r"\textbackslash{}",
    }
)


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
        table = RichTable(
            title=self.title or None, caption="\n".join(self.notes) or None, caption_justify="left"
        )
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if self._is_text(i) else "right", no_wrap=True)
        for i, row in enumerate(self.rows):
            table.add_row(*row, end_section=self._ends_block(i))
        return table

    def csv(self) -> str:
        """Comma-separated values with a header line."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return out.getvalue()

    def latex(self) -> str:
        """A ``tabular`` with booktabs rules; title and notes as comments."""
        head = [f"% {line}" for line in (self.title, *self.notes) if line]
        body = []
        for i, row in enumerate(self.rows):
            body.append(" & ".join(cell.translate(_LATEX) for cell in row) + r" \\")
            body += [r"\midrule"] * self._ends_block(i)
        kinds = "".join("l" if self._is_text(i) else "r" for i in range(len(self.columns)))
        names = " & ".join(name.translate(_LATEX) for name in self.columns) + r" \\"
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
                "",
            ]
        )
