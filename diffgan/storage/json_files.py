"""JSON from files that a user names: one function for all of them, with a bound on size and depth."""

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 16 << 20  # of one file; decoded, it takes up to twenty times as much memory


def parse_json(content: bytes | str, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text.

    Args:
        content: bytes in UTF-8, or a text.
        max_bytes: a longer text is refused.

    Raises:
        ValueError: it is not UTF-8 or not JSON, longer than `max_bytes`, or nested too deeply for Python.
    """
    if len(content) > max_bytes:
        raise ValueError(f"more than {max_bytes >> 20} MB of JSON")
    try:
        value = json.loads(content)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text and cannot be printed
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    return value


def parse_object(content: bytes | str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object of a JSON text; arguments and errors as `parse_json`, and ValueError for another value."""
    value = parse_json(content, max_bytes)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def read_object(file: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object of a JSON file, of which at most `max_bytes` are read.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: as `parse_object`.
    """
    with file.open("rb") as stream:
        return parse_object(stream.read(max_bytes + 1), max_bytes)
