"""Autocast to bfloat16 as on a GPU, for computations on the CPU's fake tensors.

torch keeps one list of operations for each kind of device. The matrix products and convolutions that are computed in
bfloat16 are the same on both; on a GPU normalisation and resizing are computed in float32, on a CPU they are not. These
results are most of what a backward pass keeps.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

# Of `AT_FORALL_FP32` in ATen/autocast_mode.h those that networks and losses call on large tensors.
FLOAT32 = ("group_norm", "layer_norm", "rms_norm", "softplus", "upsample_nearest2d", "upsample_nearest2d.vec")
AUTOCAST = "AutocastCPU"


def _in_float32(name: str) -> Callable[..., Any]:
    """The autocast kernel of an operation that is computed in float32."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*map(_wide, args), **{key: _wide(value) for key, value in kwargs.items()})

    return kernel


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


@contextlib.contextmanager
def gpu_lists() -> Iterator[None]:
    """Context in which autocast on the CPU computes in float32 what it would on a GPU; for the whole process."""
    library = Library("aten", "IMPL")
    try:
        for name in FLOAT32:
            library.impl(name, _in_float32(name), AUTOCAST)
        yield
    finally:
        library._destroy()


def autocast(mixed: bool) -> torch.autocast:
    """Context of a pass under Lightning's bf16-mixed precision, which caches no casts, or in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)
