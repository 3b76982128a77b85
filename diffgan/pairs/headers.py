"""The metadata in the header of a shard: one JSON object under the key `diffgan`. Reading it needs no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffgan.storage.json_files import parse_object
from diffgan.storage.tensor_headers import parse_metadata, read_tensors_header

HEADER = "diffgan"


def header_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a shard, from the texts in its safetensors header.

    Raises:
        ValueError: the file is not one of diffgan.
    """
    if HEADER not in metadata:
        raise ValueError("no file of diffgan")
    return parse_object(metadata[HEADER])


def parse_header(content: bytes) -> dict[str, Any]:
    """The metadata of a shard or partial shard, given all bytes of its file; errors as `header_in`."""
    return header_in(parse_metadata(content))


def read_header(file: Path) -> dict[str, Any]:
    """The metadata of a shard on this machine; the tensors are not read, but the file's length is checked.

    Raises:
        FileNotFoundError: there is no such file.
        OSError, ValueError: the file cannot be read, or is not a safetensors file of diffgan.
    """
    return header_in(read_tensors_header(file).metadata)


def header_fault(header: Mapping[str, Any]) -> str | None:
    """What is wrong with the metadata of a shard or partial shard, beside the fields that it shares with manifests.

    They may be missing, as in sets of earlier versions.
    """
    truncated, batch_size, made = header.get("truncated", 0), header.get("batch_size", 1), header.get("made", [])
    if type(truncated) is not int or truncated < 0:
        return f"truncated is {truncated!r} in its header and must be a number of prompts"
    if type(batch_size) is not int or batch_size < 1:
        return f"batch_size is {batch_size!r} in its header and must be an integer of at least 1"
    if not isinstance(made, list) or not all(map(_is_made, made)):
        return "made is no list of device, versions and compile in its header"
    if not isinstance(header.get("digest", ""), str):
        return "digest is no text in its header"
    return None


def _is_made(value: Any) -> bool:
    """Whether a value says how a batch was made."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("device"), str)
        and isinstance(value.get("versions"), dict)
        and isinstance(value.get("compile"), bool)
    )
