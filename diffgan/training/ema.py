"""Exponential moving average of weights, with its half-life in images."""

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffgan.training.sharing import copy_sharing


def frozen_copy(module: nn.Module, base: nn.Module | None = None) -> nn.Module:
    """A copy of `module` in eval mode whose parameters do not require gradients; tensors of `base` are not copied."""
    copied = copy.deepcopy(module) if base is None else copy_sharing(module, base)
    return copied.requires_grad_(False).eval()


def decay(images: int, half_life: float) -> float:
    """The average's factor for a step of `images` images: 2^(-images / half_life); 0 if `half_life` is 0."""
    return 0.5 ** (images / half_life) if half_life > 0 else 0.0


def ramped(half_life: float, images_seen: int) -> float:
    """The half-life in images, limited to a quarter of the images seen so far: early weights are forgotten quickly."""
    return min(half_life, images_seen / 4)


class Following(NamedTuple):
    """The tensors of an average and of the module that it follows.

    means, values: parameters of the average and of the module: themselves, as an optimizer may replace their storages.
    buffers: pairs of buffers of the average and of the module.
    """

    means: list[Tensor]
    values: list[Tensor]
    buffers: list[tuple[Tensor, Tensor]]


def following(average: nn.Module, module: nn.Module) -> Following:
    """The tensors that `update` needs, without those that both share.

    Collect them once: collecting takes as long as an update.
    """
    parameters = own_pairs(average.parameters(), module.parameters())
    means, values = ([pair[side] for pair in parameters] for side in (0, 1))
    return Following(means, values, own_pairs(average.buffers(), module.buffers()))


def own_pairs(means: Iterable[Tensor], values: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The tensors of an average and of what it follows, in pairs, without those that both share."""
    return [(mean, value) for mean, value in zip(means, values, strict=True) if mean is not value]


@torch.no_grad()
def update(pair: Following, factor: float) -> None:
    """average <- factor * average + (1 - factor) * module; buffers are copied.

    The average may be on the CPU while the module is on a GPU: its tensors are then copied to the host one by one.
    """
    means, values = ([_local(parameter) for parameter in parameters] for parameters in (pair.means, pair.values))
    if all(mean.device == value.device for mean, value in zip(means, values, strict=True)):
        torch._foreach_lerp_(means, values, 1 - factor)
    else:
        for mean, value in zip(means, values, strict=True):
            mean.lerp_(value.to(mean.device), 1 - factor)
    for mean, value in pair.buffers:
        mean.copy_(value)


def _local(tensor: Tensor) -> Tensor:
    """The tensor; under FSDP2 this process's shard of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
