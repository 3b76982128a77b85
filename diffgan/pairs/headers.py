"""The metadata in the header of a shard: one JSON object under the key `diffgan`. Reading it needs no torch."""

import json
from pathlib import Path
from typing import Any

from safetensors import deserialize, safe_open

HEADER = "diffgan"


def parse_header(content: bytes) -> dict[str, Any]:
    """The metadata of a shard or partial shard.

    Args:
        content: all bytes of its file.

    Raises:
        SafetensorError, KeyError, ValueError: the bytes are not a safetensors file of diffgan.
    """
    deserialize(content)
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    return json.loads(metadata[HEADER])


def read_header(file: Path) -> dict[str, Any]:
    """The metadata of a shard on this machine; the tensors are not read, but the file's length is checked.

    Raises:
        FileNotFoundError: there is no such file.
        SafetensorError, OSError, KeyError, TypeError, ValueError: the file is not a safetensors file of diffgan.
    """
    with safe_open(file, framework="np") as archive:
        metadata = archive.metadata() or {}
    return dict(json.loads(metadata[HEADER]))
