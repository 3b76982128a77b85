"""Copies of a network that share its tensors: modules of their own, one set of weights in memory."""

import copy
from collections.abc import Iterator

from torch import Tensor, nn


def copy_sharing(network: nn.Module, base: nn.Module) -> nn.Module:
    """A copy of a network, but for the tensors that it shares with `base`: those are the same objects in the copy.

    A module's `to` then moves them once for all, as it changes a parameter's data in place.

    Args:
        network: to be copied; `base` itself, or a network that shares tensors with it.
        base: whose tensors are not copied.
    """
    return copy.deepcopy(network, {id(tensor): tensor for tensor in _tensors(base)})


def names_shared(module: nn.Module, base: nn.Module) -> set[str]:
    """Names in `module` of the parameters and buffers that it shares with `base`."""
    shared = {id(tensor) for tensor in _tensors(base)}
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name for name, tensor in named if id(tensor) in shared}


def own_bytes(network: nn.Module, base: nn.Module) -> int:
    """Bytes of a network's parameters and buffers that it does not share with `base`."""
    shared = {id(tensor) for tensor in _tensors(base)}
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(network) if id(tensor) not in shared)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
