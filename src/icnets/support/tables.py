"""Tables in plain columns and in Markdown, and counts with units."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under ``columns``; the first column is left-aligned, the others right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def plain(self) -> str:
        """Returns aligned columns as text."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            first, *rest = zip(cells, widths, strict=True)
            return "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip()

        rule = "  ".join("-" * w for w in widths)
        return "\n".join([self.title, "", line(self.columns), rule, *map(line, self.rows), "", *self.notes])

    def markdown(self) -> str:
        """Returns a GitHub table with its title and notes."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        align = "|" + "|".join(["---", *["---:"] * (len(self.columns) - 1)]) + "|"
        table = [line(self.columns), align, *(line(row) for row in self.rows)]
        return "\n".join([f"**{self.title}**", "", *table, "", *(f"{note}  " for note in self.notes)]) + "\n"


def human(number: float) -> str:
    """Writes a count in three digits with k, M or G; below 1,000 as it is.

    Example:
        >>> human(1234)
        '1.23 k'
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:
            value = number / limit
            digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{number:.0f}"
