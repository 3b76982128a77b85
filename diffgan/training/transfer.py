"""Copies from the host to a GPU that the host does not wait for."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device.

    A copy to a GPU is made from pinned memory, and ordered before the computations that follow. From other memory
    the host would wait until everything that the GPU has to do is done.

    Args:
        tensor: of the CPU, as a rule; on `device` it is returned as it is.
        device: such as that of the network that will use it.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")  # on the host they could be read too early
