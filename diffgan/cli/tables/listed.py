"""Tables that a file lists row by row (configs/tables/readme/NAME.yaml): titles, records, typed texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diffgan.cli.tables.columns import columns_of
from diffgan.cli.tables.grid import Cell, Grid, GridColumn, GridRow, is_compared, measured, real_images
from diffgan.cli.tables.records import Record, read_measurements, read_record, require_comparable, require_distinct
from diffgan.errors import UserError, first_line

if TYPE_CHECKING:
    from diffgan.evaluation.metrics.base import Column


@dataclass(frozen=True)
class ListedColumn:
    """A column: a metric, or a text that each row gives.

    key: of the metric, without "evaluation/"; heading, digits, scale, better: in place of those of its column.
    text: heading of a column of typed texts.
    relative_to: a record; the column shows the metric divided by that record's.
    """

    key: str = ""
    heading: str | None = None
    digits: int | None = None
    scale: float | None = None
    better: str | None = None
    text: str = ""
    relative_to: str | None = None


@dataclass(frozen=True)
class ListedRow:
    """A row.

    records: files, one for each seed; none: the row was not measured.
    at: where the values are in files that are no metrics.json, from the outermost key.
    suffix: of the metrics' keys, e.g. "_reconstruction".
    text: cells of the columns of texts, by heading.
    """

    title: str
    records: tuple[str, ...] = ()
    at: tuple[str, ...] = ()
    suffix: str = ""
    text: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ListedTable:
    """The content of a file.  title: heading of the first column.  real_images: whether they are the last row."""

    columns: tuple[ListedColumn, ...]
    rows: tuple[ListedRow, ...]
    title: str = ""
    real_images: bool = False


def listed_grid(path: Path) -> Grid:
    """The table that a file lists; raises UserError naming the file and what is wrong."""
    table = _read(path)
    records = [_records(row) for row in table.rows]
    every = [record for row in records for record in row]
    require_comparable(every)
    shown = [_column(column, table.rows, every, path) for column in table.columns]
    rows = []
    for row, runs in zip(table.rows, records, strict=True):
        cells = [_cell(row, runs, *pair) for pair in zip(table.columns, shown, strict=True)]
        rows.append(GridRow(row.title, tuple(cells), is_compared(runs) and not row.suffix))
    if table.real_images:
        rows.append(GridRow("real images", real_images(every, shown), compared=False))
    return Grid(table.title, tuple(map(GridColumn.of, shown)), tuple(rows))


def _records(row: ListedRow) -> list[Record]:
    paths = map(Path, row.records)
    records = [read_measurements(path, row.at) if row.at else read_record(path) for path in paths]
    require_distinct(records)
    return records


def _column(listed: ListedColumn, rows: tuple[ListedRow, ...], records: list[Record], path: Path) -> "Column":
    """The column as it is shown."""
    from diffgan.evaluation.metrics.base import Column

    if listed.text:
        return Column("", listed.text, 0)
    try:
        (column,) = columns_of([listed.key], records)
    except UserError as error:
        raise UserError(f"{path}: columns: {error}") from error
    changes = {name: getattr(listed, name) for name in ("heading", "digits", "scale", "better")}
    column = column._replace(**{name: value for name, value in changes.items() if value is not None})
    if listed.relative_to is not None:
        divisor = read_record(Path(listed.relative_to))
        require_comparable([divisor, *records])
        value = divisor.values.get(listed.key)
        if not isinstance(value, int | float) or value == 0:
            raise UserError(f"{path}: {listed.relative_to} has no {listed.key} to divide by")
        column = column._replace(scale=1 / value, real_key=None)
    return column


def _cell(row: ListedRow, records: list[Record], listed: ListedColumn, column: "Column") -> Cell:
    if listed.text:
        return row.text.get(listed.text, "")
    return measured(records, column.key + row.suffix, column.scale)


# ---- reading ----


def _read(path: Path) -> ListedTable:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: is no table ({first_line(error)})") from error
    table = _build(ListedTable, content, str(path))
    _require(isinstance(table.title, str), f"{path}: title", "a text")
    for name in ("columns", "rows"):
        _require(isinstance(getattr(table, name), list), f"{path}: {name}", "a list")
    _require(isinstance(table.real_images, bool), f"{path}: real_images", "true or false")
    columns = tuple(_listed_column(value, f"{path}: columns {number}") for number, value in enumerate(table.columns, 1))
    rows = tuple(_listed_row(value, f"{path}: rows {number}") for number, value in enumerate(table.rows, 1))
    headings = {column.text for column in columns}
    for row in rows:
        if unknown := set(row.text) - headings:
            raise UserError(f"{path}: {row.title}: no column of texts is called {sorted(unknown)[0]}")
    return ListedTable(columns, rows, table.title, table.real_images)


def _listed_column(value: Any, place: str) -> ListedColumn:
    column = _build(ListedColumn, {"key": value} if isinstance(value, str) else value, place)
    for name in ("key", "text", "heading", "relative_to"):
        _require(isinstance(getattr(column, name), str | None), f"{place}: {name}", "a text")
    _require(
        column.digits is None or (type(column.digits) is int and column.digits >= 0), f"{place}: digits", "a count"
    )
    _require(column.scale is None or type(column.scale) in (int, float), f"{place}: scale", "a number")
    _require(column.better in (None, "lower", "higher"), f"{place}: better", "lower or higher")
    if bool(column.key) == bool(column.text):
        raise UserError(f"{place}: needs either key (a metric) or text (the heading of typed texts)")
    return column


def _listed_row(value: Any, place: str) -> ListedRow:
    row = _build(ListedRow, value, place)
    for name in ("title", "suffix"):
        _require(isinstance(getattr(row, name), str), f"{place}: {name}", "a text; put it in quotes")
    _require(isinstance(row.text, Mapping), f"{place}: text", "a mapping of headings to texts")
    records = (row.records,) if isinstance(row.records, str) else row.records
    for name, value in (("records", records), ("at", row.at)):
        _require(isinstance(value, list | tuple) and all(map(_is_text, value)), f"{place}: {name}", "a list of texts")
    texts = {str(heading): str(text) for heading, text in row.text.items()}
    return ListedRow(row.title, tuple(records), tuple(row.at), row.suffix, texts)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _require(condition: bool, place: str, expected: str) -> None:
    if not condition:
        raise UserError(f"{place}: must be {expected}")


def _build(kind: type, value: Any, place: str) -> Any:
    """A dataclass from a mapping with its fields; raises UserError for other keys and missing ones."""
    names = [each.name for each in fields(kind)]
    if not isinstance(value, dict) or (unknown := sorted(set(map(str, value)) - set(names))):
        wrong = f"{unknown[0]} is none of {', '.join(names)}" if isinstance(value, dict) else "must be a mapping"
        raise UserError(f"{place}: {wrong}")
    try:
        return kind(**value)
    except TypeError as error:
        raise UserError(f"{place}: {first_line(error).partition('() ')[2]}") from error
