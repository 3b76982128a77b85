"""Precision of float32 computations: autocast, and the TF32 of matrix products and convolutions on a GPU."""

import contextlib
from collections.abc import Iterator

import torch

HIGHEST = "highest"


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Context in which autocast is off on a device; some kinds of devices (meta) have none."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on a device now; None where it is off."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Context in which matrix products and convolutions of float32 are computed in float32 on a GPU.

    torch has two settings for matrix products, `set_float32_matmul_precision` and `fp32_precision`, and fails with an
    error where it finds that they differ. So both are changed.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision
    matmul_precision = _matmul_precision()
    try:
        if matmul_precision != HIGHEST:
            torch.set_float32_matmul_precision(HIGHEST)
        matmul.fp32_precision = convolution.fp32_precision = "ieee"
        yield
    finally:
        if matmul_precision != HIGHEST:
            torch.set_float32_matmul_precision(matmul_precision)
        matmul.fp32_precision, convolution.fp32_precision = before


def _matmul_precision() -> str:
    """What `set_float32_matmul_precision` has set; "highest", its default, where `fp32_precision` alone is in use."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return HIGHEST
