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
    """``rows`` of cells under ``columns``; the first column is text, the others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = field(default_factory=tuple)

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(
            title=self.title or None, caption="\n".join(self.notes) or None, caption_justify="left"
        )
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in self.rows:
            table.add_row(*row)
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
        body = [" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in self.rows]
        names = " & ".join(name.translate(_LATEX) for name in self.columns) + r" \\"
        return "\n".join(
            [
                *head,
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                r"\toprule",
                names,
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                "",
            ]
        )
