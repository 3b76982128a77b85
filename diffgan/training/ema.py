"""Exponential moving average of weights, with its half-life in images."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
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


class Following(NamedTuple):
    """An average and what it follows, tensor by tensor; under FSDP a process's shards of them."""

    means: list[Tensor]
    values: list[Tensor]
    buffers: list[tuple[Tensor, Tensor]]


def following(average: nn.Module, module: nn.Module) -> Following:
    """The tensors of `average` and of the `module` it follows, found once: the search takes as long as an update."""
    means, values = ([_local(p) for p in network.parameters()] for network in (average, module))
    return Following(means, values, list(zip(average.buffers(), module.buffers(), strict=True)))


@torch.no_grad()
def update(pair: Following, factor: float) -> None:
    """average <- factor * average + (1 - factor) * module; buffers are copied."""
    torch._foreach_lerp_(pair.means, pair.values, 1 - factor)
    for mean, value in pair.buffers:
        mean.copy_(value)


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
