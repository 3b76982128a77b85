"""The table of metrics in a page: one row a metric, one column a model."""

from typing import Any, NamedTuple

from diffgan.evaluation.columns import metric_columns
from diffgan.evaluation.metrics.base import Column

PREFIX = "evaluation/"  # of the metrics' keys in a record
HELD_OUT = (
    Column("validation/regression", "held-out regression loss", 4),
    Column("validation/mse", "held-out MSE", 4),
    Column(f"{PREFIX}seconds_per_image", "seconds / image", 4),
)


class Row(NamedTuple):
    """A metric: its heading and a cell for each column."""

    heading: str
    cells: list[str]


class MetricsTable(NamedTuple):
    """Names of the columns, and the rows."""

    columns: list[str]
    rows: list[Row]


def metrics_table(records: list[dict[str, Any]]) -> MetricsTable:
    """The table of these records (contents of metrics.json), and of the real images if the protocol has values of them.

    The rows are the network calls and every metric with a heading that a record has.
    """
    columns = [column for column in _columns() if any(column.key in record["metrics"] for record in records)]
    rows = [Row("network calls", [str(record.get("network_calls", 1)) for record in records])]
    rows += [
        Row(column.heading, [_cell(record["metrics"], column, column.key) for record in records]) for column in columns
    ]
    names = [record["name"] for record in records]
    real = _real_images(records, columns)
    if not any(real):
        return MetricsTable(names, rows)
    cells = zip(rows, ["", *real], strict=True)
    return MetricsTable([*names, "real images"], [Row(row.heading, [*row.cells, cell]) for row, cell in cells])


def all_metrics(record: dict[str, Any]) -> list[Row]:
    """Every value of a record by its key."""
    return [Row(key, [number(value, 6)]) for key, value in sorted(record["metrics"].items())]


def number(value: float, significant: int) -> str:
    """A number with at most so many significant digits; NaN as such."""
    return "NaN" if value != value else f"{value:,.{significant}g}"


def _columns() -> list[Column]:
    """Every column, with the keys of records."""
    measured = [
        column._replace(key=PREFIX + column.key, real_key=column.real_key and PREFIX + column.real_key)
        for column in metric_columns()
    ]
    return [*measured, *HELD_OUT]


def _real_images(records: list[dict[str, Any]], columns: list[Column]) -> list[str]:
    """The cells of the real images, whose values are the same in all records that have them."""
    metrics: dict[str, float] = {}
    for record in records:
        metrics |= record["metrics"]
    return [column.real_text or _cell(metrics, column, column.real_key) for column in columns]


def _cell(metrics: dict[str, float], column: Column, key: str | None) -> str:
    """A value; empty if the record lacks it."""
    if key is None or key not in metrics:
        return ""
    value = metrics[key] * column.scale
    return "NaN" if value != value else f"{value:.{column.digits}f}"
