"""Tables of a table file (configs/tables/NAME.yaml) at one scale: measured values and the paper's beside them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diffgan.cli.sweeps.table_file import Row, Table, row_records
from diffgan.cli.tables.columns import columns_of, measured_columns
from diffgan.cli.tables.grid import Cell, Grid, GridColumn, GridRow, is_compared, measured, real_images
from diffgan.cli.tables.records import Record, read_record, require_comparable
from diffgan.errors import UserError

if TYPE_CHECKING:
    from diffgan.evaluation.metrics.base import Column


class Shown(NamedTuple):
    """A column of the table.  is_paper: whether it holds the paper's values of the metric, not those of records."""

    column: "Column"
    is_paper: bool


def swept_grid(table: Table, scale: str, folder: Path) -> Grid:
    """A table from a folder of its records.

    A row without records is "not measured", one that lacks seeds says how many it has. The paper's values of a metric
    stand right of the measured ones, or after all columns if the metric was not measured at this scale.

    Raises:
        UserError: a record cannot be read, or records cannot be compared.
    """
    rows = table.rows_of(scale)
    records = {key: [read_record(path) for path in row_records(folder, key, table)] for key in rows}
    every = [record for runs in records.values() for record in runs]
    require_comparable(every)
    shown = _shown(table, rows.values(), _columns(table, scale, every))
    lines = []
    for key, row in rows.items():
        cells = tuple(_cell(row, records[key], each) for each in shown)
        lines.append(GridRow(_title(row, records[key], table), cells, is_compared(records[key])))
    real = real_images(every, [each.column for each in shown if not each.is_paper])
    if every and any(real):
        values = iter(real)
        cells = tuple("" if each.is_paper else next(values) for each in shown)
        lines.append(GridRow("real images", cells, compared=False))
    return Grid(table.title, tuple(_heading(each, table) for each in shown), tuple(lines), _note(every, table))


def _columns(table: Table, scale: str, records: Sequence[Record]) -> "list[Column]":
    """The columns that the table file lists for the scale, else all that was measured."""
    if scale not in table.columns:
        return measured_columns(records)
    try:
        return columns_of(table.columns[scale], records)
    except UserError as error:
        raise UserError(f"table {table.name}: columns.{scale}: {error}") from error


def _shown(table: Table, rows: Iterable[Row], columns: "Sequence[Column]") -> list[Shown]:
    """The measured columns, each followed by the paper's if there is one; then the paper's of other metrics."""
    paper = {key: None for row in rows for key in row.paper} if table.paper else {}
    shown = []
    for column in columns:
        shown.append(Shown(column, is_paper=False))
        if column.key in paper:
            shown.append(Shown(column, is_paper=True))
    measured_keys = {column.key for column in columns}
    others = columns_of((key for key in paper if key not in measured_keys), ())
    return shown + [Shown(column, is_paper=True) for column in others]


def _cell(row: Row, records: Sequence[Record], shown: Shown) -> Cell:
    column = shown.column
    if not shown.is_paper:
        return "" if row.cited else measured(records, column.key, column.scale)
    value = row.paper.get(column.key)
    return "" if value is None else f"{value * column.scale:.{column.digits}f}"


def _title(row: Row, records: Sequence[Record], table: Table) -> str:
    """The row's title; it says so if records of some seeds are missing."""
    seeds = len(table.seeds)
    has_seeds = row.pipeline is None and not row.cited
    return f"{row.title} ({len(records)} of {seeds} seeds)" if has_seeds and 0 < len(records) < seeds else row.title


def _heading(shown: Shown, table: Table) -> GridColumn:
    heading = GridColumn.of(shown.column)
    if not shown.is_paper:
        return heading
    return GridColumn(f"{heading.heading} in the paper ({table.paper.scale})")


def _note(records: Sequence[Record], table: Table) -> str:
    """The protocol of the records, and where the paper has its values."""
    evaluated = [record for record in records if record.protocol is not None]
    protocol = [f"Protocol {evaluated[0].protocol} ({evaluated[0].digest})."] if evaluated else []
    source = [f"Paper: {table.paper.scale}, {table.paper.source}."] if table.paper else []
    return " ".join(protocol + source)
