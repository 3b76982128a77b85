"""The record of a check: a JSON file that is complete after every cell, and Markdown tables."""

import json
from pathlib import Path
from typing import Any

from diffgan.storage.atomic import write_atomic

DIGITS = 5  # significant digits of numbers in the file
LONGEST = 150  # characters of an error in a table
MOST = 12  # places that are shown


class Report:
    """Results of a check.

    Args:
        file: written anew after every result; None: nowhere.

    Attributes:
        record: the content of the file.
    """

    def __init__(self, file: Path | None):
        self.file = file
        self.record: dict[str, Any] = {"complete": False, "parts": {}}

    def set(self, **values: Any) -> None:
        """Record values of the whole check."""
        self.record |= {name: _plain(value) for name, value in values.items()}
        self._write()

    def begin(self, part: int, title: str) -> None:
        """Record that a part begins."""
        self.record["parts"][str(part)] = {"title": title, "status": "begun", "cells": {}}
        self._write()

    def cell(self, part: int, name: str, values: dict[str, Any]) -> None:
        """Record a cell of a part that has begun."""
        self.record["parts"][str(part)]["cells"][name] = _plain(values)
        self._write()

    def end(self, part: int, status: str, seconds: float, **values: Any) -> None:
        """Record that a part is over."""
        self.record["parts"][str(part)] |= _plain({"status": status, "seconds": seconds} | values)
        self._write()

    def _write(self) -> None:
        if self.file is not None:
            write_atomic(self.file, json.dumps(self.record, indent=1).encode())

    def text(self) -> str:
        """What the check ran on, and one Markdown table for each part."""
        tables = [_table(number, part) for number, part in self.record["parts"].items()]
        return "\n\n".join([_heading(self.record), *tables])


def _plain(value: Any) -> Any:
    """The same value with rounded numbers, for JSON."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _heading(record: dict[str, Any]) -> str:
    machine = record.get("machine", {})
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items() if version)
    rates = ", ".join(f"{name} {_shown(value)}" for name, value in record.get("rates", {}).items() if name != "status")
    spent = f"{record.get('seconds', 0):.0f} of {record.get('budget', 0):.0f} s"
    return f"{machine.get('device')}, {versions}\n{rates}\n{spent}"


def _table(number: str, part: dict[str, Any]) -> str:
    """A part as a table: a row for each cell, a column for each number; other values stand in the file alone."""
    cells = part["cells"]
    numbers = (int, float, str)
    hidden = ("status", "error", "place")
    columns = list(dict.fromkeys(c for cell in cells.values() for c, v in cell.items() if isinstance(v, numbers)))
    columns = sorted((column for column in columns if column not in hidden), key=lambda column: column == "seconds")
    status = "" if part["status"] == "ok" else f": {part['status']} {part.get('error', '')} {part.get('place', '')}"
    lines = [f"**Part {number}: {part['title']}** ({part.get('seconds', 0):.0f} s){status}"]
    if cells:
        lines += ["", _row(["", "status", *columns]), _row(["---"] * (len(columns) + 2))]
    for name, cell in cells.items():
        lines.append(_row([name, _status(cell), *(_shown(cell.get(column)) for column in columns)]))
    for name, cell in cells.items():
        lines += _lists(name, cell)
    return "\n".join(lines)


def _lists(name: str, cell: dict[str, Any]) -> list[str]:
    """What a cell counted by place, the most frequent ones."""
    lines = []
    for column, value in cell.items():
        if isinstance(value, dict):
            items = [f"- {_shown(count)}: {place}" for place, count in value.items()]
            lines += ["", f"{name}, {column}:", "", *items[:MOST]]
    return lines


def _row(words: list[str]) -> str:
    return f"| {' | '.join(words)} |"


def _status(cell: dict[str, Any]) -> str:
    if "error" not in cell:
        return cell["status"]
    text = f"{cell['status']}: {cell['error']}"[:LONGEST]
    return f"{text} ({cell['place'].split(' <- ')[0]})".replace("|", "/")


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
