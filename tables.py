"""Tables of results for the terminal, and as CSV, Markdown or LaTeX (booktabs).

Tables and CSV hold per cent (differences: percentage points), with the unit in the column names; JSON holds
fractions.
"""

import csv
import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from clipspm.terminal import escaped, one_line

#: what results are written as
Format = Literal["terminal", "csv", "json", "latex", "markdown"]

#: fields of a record that are fractions, and the unit that their CSV columns end with
_UNITS = {
    **dict.fromkeys(("accuracy", "interval95", "classes95_low", "classes95_high", "seed_std"), "percent"),
    **dict.fromkeys(("effect", "effect_low", "effect_high"), "points"),
}
#: spaces between two columns on the terminal
_GAP = 2

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
_MARKDOWN = str.maketrans({c: "\\" + c for c in "\\|`*_<>[]!#&"})


@dataclass(frozen=True)
class Table:
    """``rows`` of cells under ``columns``; a rule after every ``block`` rows.

    The first column and those named in ``text`` hold text, the others numbers. Empty columns are left out,
    except in CSV. A row with only a first cell is a heading.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    block: int | None = None
    text: Sequence[str] = ()

    def _is_text(self, column: int) -> bool:
        return column == 0 or self.columns[column] in self.text

    def _shown(self) -> "Table":
        """Return the table without empty columns."""
        kept = [i for i in range(len(self.columns)) if i == 0 or any(row[i] for row in self.rows)]
        return self._only(kept)

    def _only(self, columns: Sequence[int]) -> "Table":
        rows = [[one_line(row[i]) for i in columns] for row in self.rows]
        return replace(self, columns=[one_line(self.columns[i]) for i in columns], rows=rows)

    def _ends_block(self, row: int) -> bool:
        return bool(self.block) and (row + 1) % (self.block or 1) == 0 and row + 1 < len(self.rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render for the terminal without breaking cells: columns that do not fit go into a block below.

        Where not even one column fits beside the first, each row becomes a list of its cells, which may be
        wider than the terminal (print with ``soft_wrap=True`` so that they are not cut off).
        """
        if self.title:
            yield Text(one_line(self.title), style="bold", no_wrap=False, overflow="fold")
        shown = self._shown()
        for count, columns in enumerate(shown._blocks(options.max_width)):
            part = shown._only(columns)
            if count:
                yield Text("")
            narrow = _total(part._widths()) > options.max_width
            yield part._listed() if narrow else part._grid(options.max_width)
        for note in self.notes:
            yield Text(one_line(note), style="dim", no_wrap=False, overflow="fold")

    def _widths(self) -> list[int]:
        """Width of each column: its widest cell or the longest word of its heading."""
        return [
            max(1, *(cell_len(row[i]) for row in self.rows), *map(cell_len, name.split()))
            for i, name in enumerate(self.columns)
        ]

    def _blocks(self, width: int) -> list[list[int]]:
        """The columns of each block: the text columns and as many others as fit in ``width``.

        One block with all columns if some column does not fit at all.
        """
        widths = [w + _GAP for w in self._widths()]
        fixed = [i for i in range(len(widths)) if self._is_text(i)]
        others = [i for i in range(len(widths)) if not self._is_text(i)]
        room = width + _GAP - sum(widths[i] for i in fixed)
        if not others or max(widths[i] for i in others) > room:
            return [list(range(len(widths)))]
        blocks: list[list[int]] = [[]]
        for i in others:
            if sum(widths[j] for j in [*blocks[-1], i]) > room:
                blocks.append([])
            blocks[-1].append(i)
        return [sorted([*fixed, *block]) for block in blocks]

    def _grid(self, room: int) -> RichTable:
        """Lay out as a grid, breaking headings between words if they make it wider than ``room``."""
        least = self._widths()
        widths = [max(w, cell_len(name)) for w, name in zip(least, self.columns, strict=True)]
        if _total(widths) > room:
            widths = least
        table = RichTable(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=(0, _GAP - 1)
        )
        for i, (name, width) in enumerate(zip(self.columns, widths, strict=True)):
            lines = "\n".join(textwrap.wrap(name, width, break_long_words=False))
            side: Any = "left" if self._is_text(i) else "right"
            table.add_column(Text(lines), justify=side, no_wrap=True, vertical="bottom")
        for i, row in enumerate(self.rows):  # as Text, which does not read [x] as markup
            style = "bold" if len(row) > 1 and not any(row[1:]) else None
            table.add_row(*map(Text, row), style=style, end_section=self._ends_block(i))
        return table

    def _listed(self) -> Text:
        longest, lines = max(map(cell_len, self.columns[1:]), default=0), []
        for row in self.rows:
            lines.append(row[0])
            cells = zip(self.columns[1:], row[1:], strict=True)
            lines += [f"  {name:<{longest}}  {cell}" for name, cell in cells if cell]
        return Text("\n".join(lines), no_wrap=True, overflow="ignore")

    def csv(self) -> str:
        """Comma-separated values with a header line; text that looks like a formula gets a leading ``'``."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([_plain(cell) for cell in row] for row in (self.columns, *self.rows))
        return out.getvalue()

    def markdown(self) -> str:
        """A Markdown table; title and notes as paragraphs."""
        shown = self._shown()
        cells = [[cell.translate(_MARKDOWN) for cell in row] for row in (shown.columns, *shown.rows)]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        lines.insert(1, "|" + "---|" * len(shown.columns))
        title, *notes = (one_line(text).translate(_MARKDOWN) for text in (self.title, *self.notes))
        parts = [title, "\n".join(lines), "\n".join(notes)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def latex(self) -> str:
        """A ``tabular`` with booktabs rules; title and notes as comments, footnotes (``[a]: ...``) below."""
        head = [f"% {one_line(line)}" for line in (self.title, *self.notes) if line]
        marks = [one_line(note).translate(_LATEX) for note in self.notes if note.startswith("[")]
        body, shown = [], self._shown()
        for i, row in enumerate(shown.rows):
            body.append(" & ".join(cell.translate(_LATEX) for cell in row) + r" \\")
            body += [r"\midrule"] * shown._ends_block(i)
        kinds = "".join("l" if shown._is_text(i) else "r" for i in range(len(shown.columns)))
        names = " & ".join(name.translate(_LATEX) for name in shown.columns) + r" \\"
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


def _plain(cell: str) -> str:
    if cell.startswith(("=", "+", "-", "@")) and len(cell) > 1:
        try:
            float(cell)
        except ValueError:
            cell = "'" + cell
    return escaped(cell)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def records_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """CSV with one line per record; fractions in per cent, differences in points, None as an empty cell.

    The columns are the keys of all records in order of first appearance.
    """
    keys = list(dict.fromkeys(key for record in records for key in record))
    names = [f"{key}_{_UNITS[key]}" if key in _UNITS else key for key in keys]
    return Table(names, [[_value(key, record.get(key)) for key in keys] for record in records]).csv()


def _value(key: str, value: Any) -> str:
    if value is None:
        return ""
    return repr(round(100 * float(value), 10)) if key in _UNITS else str(value)


def written(
    format: Format,
    tables: Sequence[Table],
    *,
    csv: Callable[[], str],
    content: Callable[[], Mapping[str, Any]],
) -> str:
    """Results as text in ``format``: ``csv()``, ``content()`` as JSON, or ``tables`` as LaTeX or Markdown.

    Any other format, such as the terminal's, gives Markdown.
    """
    if format == "csv":
        return csv()
    if format == "json":
        return json.dumps(content(), indent=1) + "\n"
    return "\n".join(table.latex() if format == "latex" else table.markdown() for table in tables)


def chance(ways: Sequence[int]) -> str:
    """A note with the chance accuracy of each number of classes, such as ``chance: 20.0 % (5-way)``."""
    return "chance: " + ", ".join(f"{100 / way:.1f} % ({way}-way)" for way in sorted(set(ways)))
