"""A table before it is written: headings, rows, measured values; which value is best beyond doubt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from diffgan.cli.tables.records import EVALUATED, Record

if TYPE_CHECKING:
    from diffgan.evaluation.metrics.base import Column

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Measured:
    """The values of one row in one column, one for each record, in the unit of the column."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    def overlaps(self, other: "Measured") -> bool:
        """Whether the ranges of both share a value."""
        return self.least <= other.most and other.least <= self.most

    def text(self, digits: int) -> str:
        """The mean with its range; equal values are shown as one."""
        mean, least, most = (f"{value:.{digits}f}" for value in (self.mean, self.least, self.most))
        return mean if self.least == self.most else f"{mean} ({least} to {most})"


Cell = Measured | str


@dataclass(frozen=True)
class GridColumn:
    """heading, digits: as shown.  better: "lower", "higher", or None where neither is better.  key: of the metric."""

    heading: str
    digits: int = 0
    better: str | None = None
    key: str | None = None

    @classmethod
    def of(cls, column: "Column") -> "GridColumn":
        return cls(column.heading, column.digits, column.better, column.key)


@dataclass(frozen=True)
class GridRow:
    """A row.  compared: whether its values can be best, see `is_compared`."""

    title: str
    cells: tuple[Cell, ...]
    compared: bool = True


@dataclass(frozen=True)
class Grid:
    """A table.  title: heading of the first column.  note: a line below the table, or ""."""

    title: str
    columns: tuple[GridColumn, ...]
    rows: tuple[GridRow, ...]
    note: str = ""


def measured(records: Sequence[Record], key: str, factor: float = 1) -> Cell:
    """The cell of a metric: the values of all records times `factor`, or a text if the record holds one.

    It is "" if a record lacks the metric, and "not measured" if there is no record.
    """
    if not records:
        return NOT_MEASURED
    values = [record.values.get(key) for record in records]
    if isinstance(values[0], str):
        return values[0]
    if not all(isinstance(value, int | float) for value in values):
        return ""
    return Measured(tuple(value * factor for value in values))


def is_compared(records: Sequence[Record]) -> bool:
    """Whether a row takes part in the comparison: all but a pipeline that was evaluated as it is, without seeds."""
    return len(records) > 1 or any(record.stage != EVALUATED for record in records)


def best_row(grid: Grid, column: int) -> int | None:
    """The row whose value of a column is best beyond what the seeds differ.

    It is the one of the best mean if its range (lowest to highest value over its seeds) overlaps that of no other
    compared row. There is none if fewer than two rows are compared, or if a compared row was run with one seed only,
    because its range is not known.
    """
    better = grid.columns[column].better
    cells = {number: row.cells[column] for number, row in enumerate(grid.rows) if row.compared}
    cells = {number: cell for number, cell in cells.items() if isinstance(cell, Measured)}
    known = all(len(cell.values) > 1 and all(map(math.isfinite, cell.values)) for cell in cells.values())
    if better is None or len(cells) < 2 or not known:
        return None
    choose = min if better == "lower" else max
    best = choose(cells, key=lambda number: cells[number].mean)
    others = [cell for number, cell in cells.items() if number != best]
    return None if any(cells[best].overlaps(other) for other in others) else best


def real_images(records: Sequence[Record], columns: "Sequence[Column]") -> tuple[str, ...]:
    """The cells of the real images, whose values are the same in all records that have them."""
    values: dict[str, float | str] = {}
    for record in records:
        values |= record.values
    return tuple(column.real_text or _real_value(values, column) for column in columns)


def _real_value(values: dict[str, float | str], column: "Column") -> str:
    value = values.get(column.real_key) if column.real_key else None
    return f"{value * column.scale:.{column.digits}f}" if isinstance(value, int | float) else ""
