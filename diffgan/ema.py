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


def ramped(half_life: float, images_seen: int) -> float:
    """The half-life, but at most a quarter of the images seen so far, so that the start is forgotten."""
    return min(half_life, images_seen / 4)


@torch.no_grad()
def update(average: nn.Module, module: nn.Module, factor: float) -> None:
    """average <- factor * average + (1 - factor) * module, shard by shard; buffers are copied."""
    means = [_local(mean) for mean in average.parameters()]
    values = [_local(value).to(mean.dtype) for mean, value in zip(means, module.parameters(), strict=True)]
    torch._foreach_lerp_(means, values, 1 - factor)
    for mean, value in zip(average.buffers(), module.buffers(), strict=True):
        mean.copy_(value)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
