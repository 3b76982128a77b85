"""The verb `tables`: Markdown from stored metrics.json files."""

from pathlib import Path

from diffgan.cli.tables.columns import measured_columns
from diffgan.cli.tables.grid import Grid, GridColumn, GridRow, is_compared, measured, real_images
from diffgan.cli.tables.markdown import markdown
from diffgan.cli.tables.records import Record, read_record, require_comparable, require_distinct
from diffgan.errors import UserError
from diffgan.storage.atomic import write_atomic


def tables(records: list[Path], output: Path | None = None) -> None:
    """Print a Markdown table, one row a name; the last is what real images reach under the protocol, if it says so.

    Records of one name are runs that differ in their seed: their mean, and the lowest and highest value. The best
    mean of a column is bold if its range overlaps no other row's; every row but those of pipelines needs two seeds.

    Args:
        records: metrics.json files of one protocol.
        output: file that gets the table too.
    """
    if not records:
        raise UserError("tables: name at least one metrics.json")
    rows = [_named(read_record(path)) for path in records]
    require_comparable(rows)
    text = "\n".join(markdown(_grid(rows))) + "\n"
    print(text, end="")
    if output is not None:
        write_atomic(output, text.encode())


def _named(record: Record) -> Record:
    if not record.name:
        raise UserError(f"{record.path}: is no metrics.json (it has no `name`)")
    return record


def _grid(records: list[Record]) -> Grid:
    """A row for each name, and the columns of all that was measured."""
    columns = measured_columns(records)
    named: dict[str, list[Record]] = {}
    for record in records:
        named.setdefault(record.name, []).append(record)
    rows = []
    for name, runs in named.items():
        require_distinct(runs)
        cells = [measured(runs, column.key, column.scale) for column in columns]
        rows.append(GridRow(name, (str(runs[0].values["network_calls"]), *cells), is_compared(runs)))
    real = real_images(records, columns)
    if any(real):
        rows.append(GridRow("real images", ("", *real), compared=False))
    headings = (GridColumn("network calls"), *map(GridColumn.of, columns))
    return Grid("", headings, tuple(rows), note=f"protocol {records[0].protocol} ({records[0].digest})")
