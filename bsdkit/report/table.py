"""The one table that every result is shown by: terminal, Markdown, HTML or JSON."""

from __future__ import annotations

import html
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

__all__ = ["Column", "Row", "Table", "columns"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        label: its heading.
        is_right: whether cells are aligned right, as figures are.
        no_wrap: whether a terminal too narrow for it cuts cells instead of breaking their lines.
    """

    label: str
    is_right: bool = False
    no_wrap: bool = False


def columns(*labels: str, left: Collection[str] = (), no_wrap: bool = False) -> list[Column]:
    """Columns of figures, with those in `left` aligned left, as text is."""
    return [Column(label, label not in left, no_wrap) for label in labels]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        cells: one a column, or fewer: the last columns are then empty. A rich text has a style
            in the terminal, elsewhere its characters alone.
        style: of the row, in the terminal.
        has_rule: whether a rule separates it from the row above.
    """

    cells: tuple[str | Text, ...]
    style: str = ""
    has_rule: bool = False


@dataclass
class Table:
    """A result as rows of text, with what stands above and below them.

    Attributes:
        columns: of the table; without any, only the lines of text are shown.
        title: of the table, without a full stop.
        lead: lines above the table.
        rows: in the order shown.
        notes: lines below the table.
    """

    columns: list[Column] = field(default_factory=list)
    title: str = ""
    lead: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str | Text, style: str = "", rule: bool = False) -> None:
        """Adds a row, see `Row`.

        Raises:
            ValueError: more cells than columns.
        """
        if len(cells) > len(self.columns):
            raise ValueError(f"{len(cells)} cells, expected at most {len(self.columns)}")
        self.rows.append(Row(cells, style, rule))

    def to_rich(self, console: Console) -> None:
        """Prints lead, table and notes to a console; nothing in a text is taken for markup."""
        self._print(console, self.lead)
        if self.columns:
            if self.title:  # Rich would break a title that is wider than its table
                console.print(Text(self.title, "table.title"))
            table = RichTable()
            for column in self.columns:
                table.add_column(
                    Text(column.label),
                    justify="right" if column.is_right else "left",
                    no_wrap=column.no_wrap,
                )
            for row in self.rows:
                if row.has_rule:
                    table.add_section()
                table.add_row(*map(_as_text, row.cells), style=row.style)
            console.print(table)
        self._print(console, self.notes)

    @staticmethod
    def _print(console: Console, lines: list[str]) -> None:
        if lines:
            console.print(Text("\n".join(lines)), soft_wrap=True)

    def to_markdown(self, *, is_bare: bool = False) -> str:
        """The same in Markdown, without a line break at its end.

        Args:
            is_bare: whether to leave out the lead, the title and the notes.
        """
        lines: list[str] = []
        if self.columns:
            lines.append(_piped([column.label for column in self.columns]))
            lines.append(_piped(["---:" if column.is_right else "---" for column in self.columns]))
            lines += [_piped(cells) for cells in self._cells()]
        if is_bare:
            return "\n".join(lines)
        above = [*self.lead, *([f"{self.title}:"] if self.title else [])]
        return "\n\n".join(part for part in (*above, "\n".join(lines), *self.notes) if part)

    def to_html(self) -> str:
        """The same as an HTML ``<table>`` between paragraphs; every text is escaped."""
        above, below = (
            "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
            for lines in (self.lead, self.notes)
        )
        if not self.columns:
            return above + below
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        styles = ["" if column.is_right else ' class="left"' for column in self.columns]
        head = "".join(
            f'<th scope="col"{style}>{html.escape(column.label)}</th>'
            for style, column in zip(styles, self.columns, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{style}>{html.escape(cell)}</td>"
                for style, cell in zip(styles, cells, strict=True)
            )
            + "</tr>"
            for cells in self._cells()
        )
        return (
            f"{above}<table>{caption}<thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>{below}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON: rows are objects by column, cells are text."""
        labels = [column.label for column in self.columns]
        return {
            "title": self.title,
            "lead": list(self.lead),
            "rows": [dict(zip(labels, cells, strict=True)) for cells in self._cells()],
            "notes": list(self.notes),
        }

    def _cells(self) -> list[list[str]]:
        """The plain text of every row, one cell a column."""
        n = len(self.columns)
        return [([str(cell) for cell in row.cells] + [""] * n)[:n] for row in self.rows]


def _as_text(cell: str | Text) -> Text:
    return Text(cell) if isinstance(cell, str) else cell


def _piped(cells: list[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |"
