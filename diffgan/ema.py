"""Exponential moving average of weights, with its half-life in images."""

import copy

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` in eval mode whose parameters get no gradient."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def decay(images: int, half_life: float) -> float:
    """Factor by which the average's old weights shrink over `images` images: 2^(-images / half_life)."""
    return 0.5 ** (images / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def update(average: nn.Module, module: nn.Module, factor: float) -> None:
    """average <- factor * average + (1 - factor) * module, shard by shard; buffers are copied."""
    for mean, value in zip(average.parameters(), module.parameters(), strict=True):
        _local(mean).lerp_(_local(value).to(mean.dtype), 1 - factor)
    for mean, value in zip(average.buffers(), module.buffers(), strict=True):
        mean.copy_(value)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
