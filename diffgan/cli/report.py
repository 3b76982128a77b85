"""The verb `report`: the page of a run, from what `diffgan test` stored."""

import json
from pathlib import Path
from typing import Any

from diffgan.cli import renamed
from diffgan.errors import UserError
from diffgan.reports.comparison import Comparison
from diffgan.storage.atomic import write_atomic


def report(run: Path, *, beside: list[Path] = ()) -> None:
    """Write `report.html` in a run's folder: teacher and student on one noise, metrics, curves, provenance.

    `diffgan test` writes it too; this command adds the metrics of others, such as the teacher's.

    Args:
        run: the run's folder, after diffgan test.
        beside: a record (metrics.json) of the same protocol whose metrics stand beside the student's; may be repeated.
    """
    student = _test_record(run)
    comparison = Comparison.read(run)
    if comparison.images_seen != student.get("images_seen"):
        raise UserError(
            f"{run}: report.json is of {comparison.images_seen} images, metrics.json of {student.get('images_seen')}; "
            "run diffgan test again"
        )
    others = [_read(Path(path)) for path in beside]
    for path, other in zip(beside, others, strict=True):
        if other.get("protocol_digest") != student.get("protocol_digest"):
            raise UserError(f"{path} and {run}/metrics.json are of different protocols; evaluate both by one")
    page = _write(run, comparison, [student, *others])
    print(f"{page}: {len(comparison.first)} pairs, {len(comparison.largest)} with the largest distances")


def _write(run: Path, comparison: Comparison, records: list[dict[str, Any]]) -> Path:
    """Write the page; returns its path."""
    from diffgan.cli.plot import LOGARITHMIC, panels_of, read_curves  # heavy: not before the records are read
    from diffgan.reports.figures import curve_figure
    from diffgan.reports.page import PAGE, PageContent, render

    panels = panels_of(read_curves(run))
    figures = [curve_figure(title, curves, title in LOGARITHMIC) for title, curves in panels.items()]
    write_atomic(run / PAGE, render(PageContent(comparison, records, figures)).encode())
    return run / PAGE


def _test_record(run: Path) -> dict[str, Any]:
    """The record of the run's last test."""
    path = run / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run diffgan test first")
    record = _read(path)
    if record.get("stage") != "test":
        raise UserError(f"{path}: is a record of diffgan {record.get('stage')}; run diffgan test again")
    return record


def _read(path: Path) -> dict[str, Any]:
    """A record with the names of today."""
    try:
        record = renamed.translate_metrics(json.loads(path.read_text()))
        metrics = {name: float(value) for name, value in record["metrics"].items()}
        return {**record, "name": str(record["name"]), "metrics": metrics}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no metrics.json ({type(error).__name__}: {error})") from error
