"""The verb `report`: the page of a run, from what `diffgan test` stored."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from diffgan.cli.tables.records import Record, read_content, read_record, require_comparable
from diffgan.errors import UserError
from diffgan.reports.comparison import Comparison
from diffgan.storage.atomic import write_atomic

if TYPE_CHECKING:
    from diffgan.evaluation.metrics.base import Column
    from diffgan.reports.figures import CurveFigure
    from diffgan.reports.page import MetricsTable, Row

METRICS = "metrics.json"  # in the run's folder


def report(run: Path, *, beside: list[Path] = ()) -> None:
    """Write `report.html` in a run's folder: teacher and student on one noise, metrics, curves, provenance.

    `diffgan test` writes it too; this command adds the metrics of others, such as the teacher's.

    Args:
        run: the run's folder, after diffgan test.
        beside: a record (metrics.json) of the same protocol whose metrics stand beside the student's; may be repeated.
    """
    student = _test_record(run)
    comparison = Comparison.read(run)
    if comparison.images_seen != student.values.get("images_seen"):
        raise UserError(
            f"{run}: report.json is of {comparison.images_seen} images, {METRICS} of "
            f"{student.values.get('images_seen')}; run diffgan test again"
        )
    records = [student, *(read_record(Path(path)) for path in beside)]
    require_comparable(records)
    page = _write(run, comparison, records)
    print(f"{page}: {len(comparison.first)} pairs, {len(comparison.largest)} with the largest distances")


def _test_record(run: Path) -> Record:
    """The record of the run's last test."""
    path = run / METRICS
    if not path.is_file():
        raise UserError(f"{path}: no such file; run diffgan test first")
    record = read_record(path)
    if record.stage != "test":
        raise UserError(f"{path}: is a record of diffgan {record.stage}; run diffgan test again")
    return record


def _write(run: Path, comparison: Comparison, records: list[Record]) -> Path:
    """Write the page; returns its path."""
    from diffgan.reports.page import PAGE, PageContent, render  # heavy: not before the records are read

    content = read_content(run / METRICS)
    page = render(PageContent(comparison, content, _table(records), _all_values(records[0]), _figures(run)))
    write_atomic(run / PAGE, page.encode())
    return run / PAGE


def _table(records: list[Record]) -> "MetricsTable":
    """The network calls and every metric with a heading; a column for each record, the last one of the real images."""
    from diffgan.cli.tables.columns import measured_columns
    from diffgan.cli.tables.grid import real_images
    from diffgan.reports.page import MetricsTable, Row

    columns = measured_columns(records)
    names = [record.name or str(record.path) for record in records]
    rows = [Row("network calls", [str(record.values["network_calls"]) for record in records])]
    rows += [Row(column.heading, [_cell(record, column) for record in records]) for column in columns]
    real = real_images(records, columns)
    if not any(real):
        return MetricsTable(names, rows)
    with_real = [Row(row.heading, [*row.cells, cell]) for row, cell in zip(rows, ("", *real), strict=True)]
    return MetricsTable([*names, "real images"], with_real)


def _cell(record: Record, column: "Column") -> str:
    """A value as the tables show it, NaN as such; empty if the record lacks it."""
    value = record.values.get(column.key, "")
    if isinstance(value, str):
        return value
    return "NaN" if math.isnan(value) else f"{value * column.scale:.{column.digits}f}"


def _all_values(record: Record) -> "list[Row]":
    """Every value of a record by its key."""
    from diffgan.reports.page import Row, number

    items = sorted(record.values.items())
    return [Row(key, [value if isinstance(value, str) else number(value, 6)]) for key, value in items]


def _figures(run: Path) -> "list[CurveFigure]":
    """The curves of the run's training."""
    from diffgan.cli.plot import LOGARITHMIC, panels_of, read_curves
    from diffgan.reports.figures import curve_figure

    panels = panels_of(read_curves(run))
    return [curve_figure(title, curves, title in LOGARITHMIC) for title, curves in panels.items()]
