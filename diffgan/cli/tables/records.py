"""Records (metrics.json and other JSON files of measurements) as tables read them."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffgan.cli import renamed
from diffgan.errors import UserError, reason
from diffgan.storage.json_files import read_object

PREFIX = "evaluation/"  # of metrics in a record; columns and table files name the metric without it
TEXTS = ("name", "stage", "protocol", "protocol_digest")  # of a record, beside its metrics
NUMBERS = ("network_calls", "images_seen", "seconds", "training_seconds")
SHOWN = 40  # characters of a wrong value in a message
EVALUATED = "evaluate"  # the stage of a pipeline that was evaluated as it is


@dataclass(frozen=True)
class Record:
    """What was measured of one run or one pipeline.

    path: the file.
    values: numbers and texts by key, those of metrics without "evaluation/".
    name: what the record calls the run or pipeline.
    stage: "test" of a run, "evaluate" of a pipeline.
    protocol, digest: of the evaluation; None if it has none.
    """

    path: Path
    values: Mapping[str, float | str]
    name: str = ""
    stage: str | None = None
    protocol: str | None = None
    digest: str | None = None


def read_record(path: Path) -> Record:
    """A metrics.json of this or an earlier version; raises UserError if it is none."""
    content = read_content(path)
    values = {key.removeprefix(PREFIX): value for key, value in _values(path, content["metrics"]).items()}
    values["network_calls"] = content.get("network_calls", 1)
    if content.get("images_seen") is not None:
        values["images_seen"] = content["images_seen"]
    return _record(path, content, values)


def read_content(path: Path) -> dict[str, Any]:
    """The content of a metrics.json with the names of today, in which every value that is read has its type.

    Raises:
        UserError: it is missing or no metrics.json, or a value is of another type.
    """
    content = renamed.translate_metrics(_content(path))
    if not isinstance(content.get("metrics"), dict):
        raise UserError(f"{path}: is no metrics.json (it has no mapping `metrics`)")
    for key, value in content["metrics"].items():
        if not _is_number(value) and not isinstance(value, dict):
            raise UserError(f"{path}: metrics.{key} is {_shown(value)} and must be a number")
    for key in NUMBERS:
        if not (content.get(key) is None or _is_number(content[key])):
            raise UserError(f"{path}: {key} is {_shown(content[key])} and must be a number")
    return content


def read_measurements(path: Path, at: Sequence[str]) -> Record:
    """The numbers and texts at a place inside any JSON file; raises UserError if there is no such place.

    Args:
        path: the file.
        at: keys from the outermost mapping to the one that holds the values.
    """
    content = _content(path)
    place: Any = content
    for depth, key in enumerate(at):
        if not isinstance(place, dict) or key not in place:
            raise UserError(f"{path}: holds nothing at {' > '.join(at[: depth + 1])}")
        place = place[key]
    if not isinstance(place, dict):
        raise UserError(f"{path}: {' > '.join(at)} is no mapping")
    return _record(path, content, _values(path, place))


def require_comparable(records: Sequence[Record]) -> None:
    """Raises UserError if records are of different protocols or of different grain."""
    for record in records:
        if record.digest != records[0].digest:
            raise UserError(f"{record.path} and {records[0].path} are of different protocols; evaluate both by one")
    grains = {record.values.get("grain") for record in records} - {None}
    if len(grains) > 1:
        raise UserError("tables: some records were evaluated with more grain than others; evaluate all by one version")


def require_distinct(records: Sequence[Record]) -> None:
    """Raises UserError if runs of one row are the same file twice: its range would seem to be known."""
    paths = [record.path for record in records]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UserError(f"{path}: is named twice as a run of one row; name every seed once")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is no record ({type(error).__name__}: {reason(error)})") from error
    for key in TEXTS:
        if not isinstance(content.get(key), str | None):
            raise UserError(f"{path}: {key} is {_shown(content[key])} and must be a text")
    return content


def _values(path: Path, mapping: dict[str, Any]) -> dict[str, float | str]:
    """The numbers and texts of a mapping; nested values are ignored. Raises UserError for numbers beyond float's."""
    values = {}
    for key, value in mapping.items():
        if isinstance(value, str) or _is_number(value):
            values[key] = value
        elif type(value) is int:
            raise UserError(f"{path}: {key} is {_shown(value)}, too large for a number of a table")
    return values


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a number: NaN and infinity too, but no integer that a float cannot hold."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _record(path: Path, content: dict[str, Any], values: Mapping[str, float | str]) -> Record:
    texts = {key: content.get(key) for key in ("stage", "protocol")}
    return Record(path, values, content.get("name") or "", digest=content.get("protocol_digest"), **texts)
