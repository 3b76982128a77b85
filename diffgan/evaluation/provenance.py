"""Provenance of results: library versions, device, seed; records as JSON files."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffgan.storage.atomic import write_atomic

LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "torchmetrics", "numpy")


def environment() -> dict[str, Any]:
    """Library versions, device, precision of float32 matrix products, and seed of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "device": {"name": device, "threads": torch.get_num_threads()},
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "seed": torch.initial_seed(),
    }


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record as JSON, atomically."""
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
