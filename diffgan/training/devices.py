"""Devices by name."""

import torch

from diffgan.errors import UserError, first_line

KINDS = ("cpu", "cuda", "mps", "xpu")


def require_device(name: str, device: str) -> torch.device:
    """The device of this machine that a text names.

    Args:
        name: of the option or argument, for the message.
        device: e.g. "cpu", "cuda" or "cuda:1".

    Raises:
        UserError: there is no such kind of device, or this machine does not have it.
    """
    try:
        found = torch.device(device)
        if found.type not in KINDS:
            raise RuntimeError("is no device to compute on")
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        lines = first_line(error).split(". ")
        raise UserError(f"{name}: {device!r} cannot be used here ({lines[0].rstrip('.')}); try cpu") from error
    return found
