"""Records of what was measured: of which weights, with which versions, where."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffgan.storage.atomic import write_whole

LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "torchmetrics", "numpy")


def environment() -> dict[str, Any]:
    """Library versions, device and seed of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "device": {"name": device, "threads": torch.get_num_threads()},
        "seed": torch.initial_seed(),
    }


def digest(path: Path) -> str:
    """BLAKE2 digest of a file, or of a folder's `.safetensors` files in order of their names: 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                state.update(block)
    return state.hexdigest()


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record, whole or not at all."""
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
