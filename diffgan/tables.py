"""The verb `tables`: Markdown from stored metrics.json files."""

import json
from pathlib import Path

from diffgan.errors import UserError

# Column heading -> key of the metric, digits.
COLUMNS = {
    "FD (EfficientNet)": ("judge/fd_efficientnet", 1),
    "KID x 1000": ("judge/kid_efficientnet", 1),
    "reading": ("judge/reading", 3),
    "colours": ("judge/colour", 3),
    "diversity / real": ("judge/diversity_ratio", 3),
    "held-out MSE": ("validation/mse", 4),
    "seconds / image": ("judge/seconds_per_image", 4),
}
FLOORS = {"FD (EfficientNet)": "judge/fd_efficientnet_floor", "KID x 1000": "judge/kid_efficientnet_floor"}
REAL = {"reading": "judge/reading_real", "colours": "judge/colour_real"}


def tables(records: list[Path], output: Path | None = None) -> None:
    """Print a Markdown table, one row a record; the last row is what real pictures score under the same protocol.

    Args:
        records: metrics.json files of one protocol.
        output: file that gets the table too.
    """
    if not records:
        raise UserError("tables: name at least one metrics.json")
    rows = [_read(path) for path in records]
    for path, row in zip(records, rows, strict=True):
        if row.get("protocol_digest") != rows[0].get("protocol_digest"):
            raise UserError(f"{path} and {records[0]} were judged by different protocols; judge them by one")
    heads = [head for head, (key, _) in COLUMNS.items() if any(key in row["metrics"] for row in rows)]
    lines = [_line(["", "network calls", *heads]), _line(["---"] * (len(heads) + 2))]
    lines += [_line([row["name"], str(row.get("network_calls", 1)), *_cells(row["metrics"], heads)]) for row in rows]
    real = {**rows[0]["metrics"]}
    lines.append(_line(["real pictures", "", *(_cell(real, head, {**FLOORS, **REAL}.get(head)) for head in heads)]))
    text = "\n".join(lines) + f"\n\nprotocol {rows[0].get('protocol')} ({rows[0].get('protocol_digest')})\n"
    print(text, end="")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)


def _read(path: Path) -> dict:
    try:
        record = json.loads(path.read_text())
        return {**record, "name": record["name"], "metrics": record["metrics"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no metrics.json ({type(error).__name__}: {error})") from error


def _cells(metrics: dict[str, float], heads: list[str]) -> list[str]:
    return [_cell(metrics, head, COLUMNS[head][0]) for head in heads]


def _cell(metrics: dict[str, float], head: str, key: str | None) -> str:
    if key is None or key not in metrics:
        return "1" if head == "diversity / real" and key is None else ""
    return f"{metrics[key] * (1000 if head.startswith('KID') else 1):.{COLUMNS[head][1]}f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
