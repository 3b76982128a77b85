"""Tensors as files and digests: the only module of `diffgan.storage` that imports torch."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from diffgan.storage.atomic import write_atomic


def write_tensors(file: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write tensors and a header of strings as safetensors, completely or not at all; errors as `write_atomic`."""
    write_atomic(file, save({name: tensor.contiguous() for name, tensor in tensors.items()}, header))


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """BLAKE2 digest of CPU tensors and their names: 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(name.encode())
        state.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy())
    return state.hexdigest()
