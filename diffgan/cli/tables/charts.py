"""Charts of a table: one metric by row as bars with their ranges, or against images as curves.

What a chart shows is stored in the PNG as text. A PNG is drawn again only if that text differs, so another version of
matplotlib, which gives other bytes for the same image, changes no file.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from diffgan.cli.tables.grid import Grid, GridColumn, Measured
from diffgan.errors import UserError
from diffgan.storage.atomic import write_atomic

DATA = "diffgan"  # the text in a PNG
STYLE = 3  # of the drawing; another number draws all charts again
IMAGES = "images_seen"


class Chart(NamedTuple):
    """A chart of a table.

    path: the PNG.  kind: "bars" or "curves".  title: what it shows, in words.  axis: label of the metric's axis.
    points: the fields of `diffgan.plots.Interval`, in the order of the rows.
    """

    path: Path
    kind: str
    title: str
    axis: str
    points: list[dict[str, Any]]

    @property
    def data(self) -> str:
        """All of the chart as text."""
        shown = {"kind": self.kind, "title": self.title, "axis": self.axis, "points": self.points, "style": STYLE}
        return json.dumps(shown, sort_keys=True)

    def draw(self) -> None:
        """Write the PNG."""
        from diffgan.plots import Interval, bars_png, intervals_png  # matplotlib takes half a second

        intervals = [Interval(**point) for point in self.points]
        png = bars_png if self.kind == "bars" else intervals_png
        write_atomic(self.path, png(intervals, self.axis, {DATA: self.data}))


def chart_of(grid: Grid, kind: str, metric: str, path: Path) -> Chart:
    """The chart of a metric of a table.

    Args:
        grid: the table; for curves it needs a column `images_seen`, and rows of one title are one curve.
        kind: "bars" or "curves".
        metric: key of one of its columns.
        path: the PNG.

    Raises:
        UserError: the table has no such column, or nothing was measured.
    """
    position = _position(grid, metric)
    images = _position(grid, IMAGES) if kind == "curves" else None
    column = grid.columns[position]
    points = []
    for row in grid.rows:
        value = row.cells[position]
        x = row.cells[images] if images is not None else None
        measured = [cell for cell in (value, x) if isinstance(cell, Measured) and all(map(math.isfinite, cell.values))]
        if len(measured) == (1 if images is None else 2):
            numbers = {"mean": value.mean, "least": value.least, "most": value.most}
            rounded = {name: round(number, column.digits + 2) for name, number in numbers.items()}
            text = value.text(column.digits)
            points.append({"name": row.title, "images": x.mean if x else None, "text": text, **rounded})
    if not points:
        raise UserError(f"no row of the table has {metric} to draw")
    against = " against images" if kind == "curves" else ""
    title = f"{grid.title}: {column.heading}{against}".removeprefix(": ")
    return Chart(path, kind, title, _axis(column), points)


def is_drawn(chart: Chart) -> bool:
    """Whether the PNG is there and shows these values."""
    from diffgan.images import open_image  # torch takes seconds: not before the records are read

    try:
        with open_image(chart.path) as png:
            return png.info.get(DATA) == chart.data
    except (OSError, ValueError):
        return False


def _position(grid: Grid, key: str) -> int:
    keys = [column.key for column in grid.columns]
    if key not in keys:
        raise UserError(f"the table has no column {key}; it has {', '.join(filter(None, keys))}")
    return keys.index(key)


def _axis(column: GridColumn) -> str:
    return f"{column.heading} ({column.better} is better)" if column.better else column.heading
