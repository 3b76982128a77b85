"""The verb `tables`: Markdown from stored metrics.json files."""

import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from diffgan.cli import renamed
from diffgan.errors import UserError

if TYPE_CHECKING:
    from diffgan.evaluation.metrics.base import Column

PREFIX = "evaluation/"  # of the metrics' keys in a record


def tables(records: list[Path], output: Path | None = None) -> None:
    """Print a Markdown table, one row a name; the last is what real images reach under the protocol, if it says so.

    Records of one name are runs that differ in their seed: their mean, and the lowest and highest value.

    Args:
        records: metrics.json files of one protocol.
        output: file that gets the table too.
    """
    if not records:
        raise UserError("tables: name at least one metrics.json")
    rows = [_read(path) for path in records]
    _require_comparable(records, rows)
    protocol = f"protocol {rows[0].get('protocol')} ({rows[0].get('protocol_digest')})"
    text = "\n".join([*_lines(rows), "", protocol]) + "\n"
    print(text, end="")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)


def _columns() -> "list[Column]":
    """Every column, with the keys of records."""
    from diffgan.evaluation.columns import metric_columns  # metrics import torch: not before the records are read
    from diffgan.evaluation.metrics.base import Column

    columns = [
        column._replace(key=PREFIX + column.key, real_key=column.real_key and PREFIX + column.real_key)
        for column in metric_columns()
    ]
    others = [Column("validation/mse", "held-out MSE", 4), Column(f"{PREFIX}seconds_per_image", "seconds / image", 4)]
    return columns + others


def _read(path: Path) -> dict[str, Any]:
    """A record with the names of today."""
    try:
        record = renamed.translate_metrics(json.loads(path.read_text()))
        return {**record, "name": record["name"], "metrics": record["metrics"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no metrics.json ({type(error).__name__}: {error})") from error


def _require_comparable(records: list[Path], rows: list[dict[str, Any]]) -> None:
    """Raises UserError if records are of different protocols or grain."""
    for path, row in zip(records, rows, strict=True):
        if row.get("protocol_digest") != rows[0].get("protocol_digest"):
            raise UserError(f"{path} and {records[0]} are of different protocols; evaluate both by one")
    grains = {row["metrics"].get(f"{PREFIX}grain") for row in rows} - {None}
    if len(grains) > 1:
        raise UserError("tables: some records were evaluated with more grain than others; evaluate all by one version")


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of the table."""
    measured = set().union(*(row["metrics"] for row in rows))
    columns = [column for column in _columns() if column.key in measured]
    lines = [_line(["", "network calls", *(column.heading for column in columns)])]
    lines.append(_line(["---"] * (len(columns) + 2)))
    for name, runs in _by_name(rows).items():
        metrics = [run["metrics"] for run in runs]
        cells = [_cell(metrics, column, column.key) for column in columns]
        lines.append(_line([name, str(runs[0].get("network_calls", 1)), *cells]))
    real = _real_images(rows, columns)
    if any(real):
        lines.append(_line(["real images", "", *real]))
    return lines


def _by_name(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    named: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        named.setdefault(row["name"], []).append(row)
    return named


def _real_images(rows: list[dict[str, Any]], columns: "list[Column]") -> list[str]:
    """The cells of the real images, whose values are the same in all records that have them."""
    metrics: dict[str, float] = {}
    for row in rows:
        metrics |= row["metrics"]
    return [column.real_text or _cell([metrics], column, column.real_key) for column in columns]


def _cell(runs: list[dict[str, float]], column: "Column", key: str | None) -> str:
    """A value, or the mean of several runs with their range; empty if a run lacks it."""
    if key is None or any(key not in metrics for metrics in runs):
        return ""
    values = [metrics[key] * column.scale for metrics in runs]
    mean, least, most = (f"{value:.{column.digits}f}" for value in (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({least} to {most})"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
