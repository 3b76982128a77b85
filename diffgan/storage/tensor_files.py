"""Tensors as files and digests: the only module of `diffgan.storage` that imports torch."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from diffgan.storage.atomic import write_atomic
from diffgan.storage.tensor_headers import FLOATS, Expected, TensorInfo

FINITE_BLOCK = 1 << 22  # values whose range is computed at a time


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


def described(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Dtype and shape of each tensor, as the header of a file would state them."""
    return {name: TensorInfo(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()}


def expected_tensors(network: nn.Module) -> dict[str, Expected]:
    """What a file with the weights of a network holds: its tensors by name, numbers in any floating-point dtype."""
    expected = {}
    for name, info in described(network.state_dict()).items():
        expected[name] = Expected(info.shape, FLOATS if info.dtype in FLOATS else (info.dtype,))
    return expected


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that contains NaN or infinity; None if all are finite. Memory-mapped ones stay so."""
    return next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds no NaN or infinity, by the range of each block: one pass, without a copy."""
    if not tensor.is_floating_point():
        return True
    blocks = tensor.reshape(-1).split(FINITE_BLOCK)
    return all(torch.stack(block.aminmax()).isfinite().all() for block in blocks if len(block))
