"""Digests of files, folders and tensors."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor


def digest(path: Path) -> str:
    """BLAKE2 digest of a file, or of a folder's `.safetensors` files in order of their names: 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                state.update(block)
    return state.hexdigest()


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Digest of tensors and their names: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
