"""What the check ran on."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from diffgan.pairs.devices import device_kind
from tests.gpu.parts import Setting
from tests.gpu.timing import GB

PACKAGES = ("torch", "diffusers", "transformers", "lightning", "triton")


def machine(setting: Setting) -> dict[str, Any]:
    """Device, memory and versions, as plain values."""
    return {
        "device": device_kind(setting.device),
        "memory GB": setting.memory() / GB,
        "capability": _capability(setting),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _capability(setting: Setting) -> str | None:
    """Such as "9.0"."""
    if setting.device.type != "cuda":
        return None
    return ".".join(map(str, torch.cuda.get_device_capability(setting.device)))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
