"""The page `report.html` of a run: one file without references to others, readable without a network."""

import base64
import hashlib
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diffgan.reports.comparison import Comparison
from diffgan.reports.figures import CurveFigure
from diffgan.reports.images import SMALL

PAGE = "report.html"  # in the run's folder
TEMPLATES = Path(__file__).parent / "templates"


class Row(NamedTuple):
    """A row of a table: its heading and a cell for each column."""

    heading: str
    cells: list[str]


class MetricsTable(NamedTuple):
    """Metrics of several models: their names, and a row for each metric."""

    columns: list[str]
    rows: list[Row]


class PageContent(NamedTuple):
    """What a page shows.

    comparison: teacher and student on held-out pairs.  record: content of the student's metrics.json.  table: its
    metrics beside those of others.  values: all of its values.  figures: the curves of its training.
    """

    comparison: Comparison
    record: dict[str, Any]
    table: MetricsTable
    values: list[Row]
    figures: list[CurveFigure]


def render(content: PageContent) -> str:
    """The HTML of a page. Every text is escaped; a policy in it forbids to load anything and to run other scripts."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number}
    css, script = ((TEMPLATES / name).read_text() for name in ("page.css", "page.js"))
    comparison, student = content.comparison, content.record
    return environment.get_template("page.html").render(
        css=css,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src {_source(css)}; script-src {_source(script)}",
        comparison=comparison,
        student=student.get("name"),
        median=statistics.median(comparison.distances),
        small=max(comparison.image_size) <= SMALL,
        table=content.table,
        protocol=_protocol(student),
        figures=content.figures,
        provenance=_provenance(comparison, student),
        all_metrics=content.values,
        configuration=yaml.safe_dump(student.get("config"), sort_keys=False, allow_unicode=True),
    )


def number(value: float, significant: int) -> str:
    """A number with at most so many significant digits; NaN as such."""
    return "NaN" if math.isnan(value) else f"{value:,.{significant}g}"


def _source(text: str) -> str:
    """What allows an inline style or script in a content security policy: its SHA-256."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _protocol(record: dict[str, Any]) -> str:
    """Name and digest of the protocol; empty if nothing was evaluated."""
    return f"{record['protocol']} ({record.get('protocol_digest')})" if record.get("protocol") else ""


def _provenance(comparison: Comparison, record: dict[str, Any]) -> list[Row]:
    """What made the student and its metrics, by name; what the record lacks is omitted."""
    origin, checkpoint, device = comparison.origin, record.get("checkpoint"), record.get("device")
    facts = {
        "protocol": _protocol(record),
        "images evaluated": _whole(record["metrics"].get("evaluation/images")),
        "images seen": _whole(comparison.images_seen),
        "checkpoint": checkpoint and f"{checkpoint['name']}, digest {checkpoint['digest']}",
        "teacher": f"{comparison.teacher}, digest {comparison.teacher_digest}",
        "pair set": f"{comparison.pair_set}, {comparison.pair_count:,} pairs",
        "seed": record.get("seed"),
        "device": device and f"{device['name']}, threads: {device['threads']}",
        "float32 matrix products": record.get("float32_matmul_precision"),
        "evaluated in": record.get("seconds") and f"{record['seconds']:,} s",
        "diffgan": f"{origin.version}, commit {origin.commit}" if origin.commit else origin.version,
        "libraries": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
        "written": origin.written,
    }
    return [Row(name, [str(value)]) for name, value in facts.items() if value not in (None, "")]


def _whole(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"
