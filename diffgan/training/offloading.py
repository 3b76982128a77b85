"""Frozen modules that stay on the CPU and are lent to a device while they are used."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def attach_unregistered(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Make a module a plain attribute of another one, not a submodule.

    `owner.to`, `state_dict` and `parameters` then leave it out, and so do strategies: DDP and FSDP2 neither move nor
    broadcast nor shard it.
    """
    if name in owner._modules:
        delattr(owner, name)
    object.__setattr__(owner, name, module)


@contextlib.contextmanager
def lend(module: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Context in which the weights of a frozen module are on `device`.

    Weights that are elsewhere are replaced by copies; on exit the same tensors as before are in their places, so that
    nothing is copied back. Where all weights are on the device already, nothing happens; so contexts may be nested.

    Args:
        module: is not trained inside the context, nor are its weights changed.
        device: such as "cuda:0".
    """
    device, replaced = torch.device(device), []
    try:
        for tensors in _tensors_by_name(module):
            for name, tensor in tensors.items():
                if tensor is not None and not _is_on(tensor, device):
                    replaced.append((tensors, name, tensor))
                    tensors[name] = _copy_on(tensor, device)
        yield
    finally:
        for tensors, name, tensor in replaced:
            tensors[name] = tensor


def _tensors_by_name(module: nn.Module) -> Iterator[dict[str, Tensor | None]]:
    """The dictionaries in which a module and its submodules have their parameters and buffers."""
    for submodule in module.modules():
        yield submodule._parameters
        yield submodule._buffers


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is on a device; a device without a number is any of its type."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _copy_on(tensor: Tensor, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a validation may lend what training uses later
        copied = tensor.detach().to(device)
        return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied
