"""A table of the page, from one that is printed or from rows of its own."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Grid:
    """A table of the page: `lead` columns name the row, `right` are numbers, `ends` close a group of rows."""

    caption: str
    heads: list[str]
    rows: list[list[str]]
    lead: int = 1
    right: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    heat: list[list[float | None]] | None = None  # 0 to 1, the shade of each cell

    @classmethod
    def of(cls, table: Table) -> Grid:
        """Return one of the tables that are also printed."""
        right = frozenset(i for i, column in enumerate(table.columns) if column.justify == "right")
        cells = [[str(cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)]
        ends = frozenset(i for i, row in enumerate(table.rows) if row.end_section)
        lead = min(2, *right) if right else 1
        return cls(str(table.title), [str(column.header) for column in table.columns], cells, lead, right, ends)
