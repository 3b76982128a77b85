"""Modules that compute in float32 under autocast."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def compute_in_float32(module: nn.Module) -> None:
    """Let a module run its forward pass in float32 under autocast, in place.

    Inputs of a lower precision are converted, and autocast is off inside. Weights, names and the class stay the same;
    a copy of the module (`copy.deepcopy`) does so too.

    Args:
        module: with weights in float32.
    """
    module.forward = MethodType(_float32_forward, module)


def _float32_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward pass of the module's class in float32."""
    device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    with torch.autocast(device.type, enabled=False):
        return type(module).forward(module, *_float32(args), **_float32(kwargs))


def _float32(value: Any) -> Any:
    """The same tuples and dictionaries with every floating-point tensor in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_float32(item) for item in value)
    if isinstance(value, dict):
        return {name: _float32(item) for name, item in value.items()}
    return value
