"""Digests of files and folders."""

import hashlib
from pathlib import Path

BLOCK_BYTES = 1 << 20  # read at a time


def digest(path: Path) -> str:
    """BLAKE2 digest of a file, or of a folder's `.safetensors` files in order of their names: 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                state.update(block)
    return state.hexdigest()
