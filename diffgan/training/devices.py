"""Devices by name."""

import torch

from diffgan.errors import UserError, first_line

KINDS = ("cpu", "cuda", "mps", "xpu")


def require_device(name: str, device: str) -> torch.device:
    """The device of this machine that a text names. It is used: a process that this one forks later cannot use a GPU.

    Args:
        name: of the option or argument, for the message.
        device: e.g. "cpu", "cuda" or "cuda:1".

    Raises:
        UserError: there is no such kind of device, or this machine does not have it.
    """
    found = _parsed(name, device)
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _refusal(name, device, first_line(error).split(". ")[0]) from error
    return found


def require_unused_device(name: str, device: str) -> torch.device:
    """As `require_device`, without using a GPU: for a process that forks others."""
    found = _parsed(name, device)
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise _refusal(name, device, f"there are {count} CUDA devices")
    return found


def _parsed(name: str, device: str) -> torch.device:
    """The device that a text names; raises UserError if there is no such kind of device."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _refusal(name, device, first_line(error).split(". ")[0]) from error
    if found.type not in KINDS:
        raise _refusal(name, device, "is no device to compute on")
    return found


def _refusal(name: str, device: str, reason: str) -> UserError:
    return UserError(f"{name}: {device!r} cannot be used here ({reason.rstrip('.')}); try cpu")
