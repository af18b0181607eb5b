"""Tables: by rich on a terminal, plain columns elsewhere, Markdown for files. Numbers in words and units."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

__all__ = ["Table", "human", "show"]


@dataclass(frozen=True)
class Table:
    """Rows of text under ``columns``; the first column is left-aligned, the others right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row has {len(row)} cells for {len(self.columns)} columns: {list(row)}")

    def plain(self) -> str:
        """Aligned columns, for a log or a pipe."""
        lines = [list(self.columns), *map(list, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        rule = "  ".join("-" * w for w in widths)
        return "\n".join([self.title, "", text[0].rstrip(), rule, *(t.rstrip() for t in text[1:]), "", *self.notes])

    def markdown(self) -> str:
        """A GitHub table with its title and notes."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        align = "|" + "|".join(["---", *["---:"] * (len(self.columns) - 1)]) + "|"
        table = [line(self.columns), align, *(line(row) for row in self.rows)]
        return "\n".join([f"**{self.title}**", "", *table, "", *(f"{note}  " for note in self.notes)]) + "\n"


def show(table: Table, file: TextIO | None = None) -> None:
    """Print a table to ``file`` (standard output): by rich on a terminal that it fits, in plain columns otherwise."""
    file = sys.stdout if file is None else file
    if not file.isatty():
        print(table.plain(), file=file)
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    grid = RichTable(title=table.title, title_justify="left", title_style="bold")
    for i, column in enumerate(table.columns):
        grid.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    console = Console(file=file, highlight=False)
    console.print(grid)
    for note in table.notes:
        console.print(note, markup=False, style="dim")


def human(number: float) -> str:
    """A count in three digits with k, M or G: 1234 is "1.23 k"; below 1,000 as it is."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:
            value = number / limit
            digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{number:.0f}"
