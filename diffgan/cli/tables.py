"""The verb `tables`: Markdown from stored metrics.json files."""

import json
from pathlib import Path
from statistics import fmean

from diffgan.errors import UserError

# Column heading -> key of the metric, digits.
COLUMNS = {
    "FID": ("judge/fid", 2),
    "CLIP score": ("judge/clip_score", 3),
    "FD (EfficientNet)": ("judge/fd_efficientnet", 1),
    "KID x 1000": ("judge/kid_efficientnet", 1),
    "FD, grain": ("judge/fd_efficientnet_grain", 1),
    "KID x 1000, grain": ("judge/kid_efficientnet_grain", 1),
    "reading": ("judge/reading", 3),
    "colours": ("judge/colour", 3),
    "diversity / real": ("judge/diversity_ratio", 3),
    "diversity / real, grain": ("judge/diversity_ratio_grain", 3),
    "held-out MSE": ("validation/mse", 4),
    "seconds / image": ("judge/seconds_per_image", 4),
}
FLOORS = {
    "FD (EfficientNet)": "judge/fd_efficientnet_floor",
    "KID x 1000": "judge/kid_efficientnet_floor",
    "FD, grain": "judge/fd_efficientnet_grain_floor",
    "KID x 1000, grain": "judge/kid_efficientnet_grain_floor",
}
REAL = {"reading": "judge/reading_real", "colours": "judge/colour_real"}


def tables(records: list[Path], output: Path | None = None) -> None:
    """Print a Markdown table, one row a name; the last is what real pictures score under the protocol, if it says so.

    Records of one name are runs that differ in their seed: their mean, and the lowest and highest value.

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
    if len({row["metrics"]["judge/grain"] for row in rows if "judge/grain" in row["metrics"]}) > 1:
        raise UserError("tables: some records were judged through more grain than others; judge them by one version")
    named: dict[str, list[dict]] = {}
    for row in rows:
        named.setdefault(row["name"], []).append(row)
    heads = [head for head, (key, _) in COLUMNS.items() if any(key in row["metrics"] for row in rows)]
    lines = [_line(["", "network calls", *heads]), _line(["---"] * (len(heads) + 2))]
    for name, runs in named.items():
        cells = (_cell([run["metrics"] for run in runs], head, COLUMNS[head][0]) for head in heads)
        lines.append(_line([name, str(runs[0].get("network_calls", 1)), *cells]))
    every = {key: value for row in rows for key, value in row["metrics"].items()}  # real pictures score alike in all
    real = [_cell([every], head, {**FLOORS, **REAL}.get(head)) for head in heads]
    if any(real):
        lines.append(_line(["real pictures", "", *real]))
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


def _cell(runs: list[dict[str, float]], head: str, key: str | None) -> str:
    """The metric's value, or the mean of several runs with their range."""
    if key is None or any(key not in metrics for metrics in runs):
        return "1" if head.startswith("diversity") and key is None else ""
    values = [metrics[key] * (1000 if head.startswith("KID") else 1) for metrics in runs]
    shown = [f"{value:.{COLUMNS[head][1]}f}" for value in (fmean(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
