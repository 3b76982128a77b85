"""The forms of an export beside float32 weights in a directory: 16-bit weights, and one file for other programs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.storage.tensor_files import write_tensors
from diffgan.teachers.base import Teacher

MARK = "diffgan"  # in the header of a single file: the record of the export
PROMPTS = (
    "",
    "a red bicycle against a wall",
    "a bold serif capital A in dark red on cream",
    "a harbour in the evening",
)


def convert(student: Teacher, dtype: torch.dtype) -> dict[str, Any]:
    """Convert all networks of a student to a dtype, in place, and measure what x^ changes by.

    Both calls are the whole way from prompt and noise to x^, the second with text encoders and network computing in
    the dtype, as `from_pretrained(..., torch_dtype=dtype)` does.

    Returns:
        For the record: the dtype, the largest difference of x^ against float32, the largest |x^| and the number of
        images.

    Raises:
        UserError: a weight or x^ is not finite in the dtype.
    """
    name = str(dtype).removeprefix("torch.")
    exact = _first_images(student)  # (N, C, H, W)
    student.to(dtype)
    for weight, values in student.state_dict().items():
        if not values.isfinite().all():
            raise UserError(f"--dtype: {weight} overflows in {name}; use bfloat16 or float32")
    rounded = _first_images(student)
    if not rounded.isfinite().all():
        raise UserError(f"--dtype: the network overflows in {name}; use bfloat16 or float32")
    difference = {"largest": (rounded - exact).abs().max().item(), "largest_value": exact.abs().max().item()}
    return {"dtype": name, "difference_to_float32": difference | {"images": len(exact)}}


@torch.no_grad()
def _first_images(student: Teacher) -> Tensor:
    """x^ of the prompts above with seeds 0, 1, ...: (N, C, H, W), float32. One at a time, for memory."""
    latents = [
        student.solve(draw_noise([seed], student.latent_shape), student.encode([prompt]), 1, 1.0)
        for seed, prompt in enumerate(PROMPTS)
    ]
    return torch.cat(latents)


def check_single_file(file: Path, folder: Path) -> None:
    """Refuse the name of a single file before anything is computed.

    Raises:
        UserError: the name ends otherwise than in .safetensors, lies in the folder of the export (which is replaced as
            a whole), or belongs to a file that was not written by `export`.
    """
    if file.suffix != ".safetensors":
        raise UserError(f"--single_file: {file} must end in .safetensors")
    if folder.resolve() in file.resolve().parents:
        raise UserError(f"--single_file: {file} lies in {folder}, which is replaced as a whole; choose another place")
    if file.exists() and MARK not in _header_of(file):
        raise UserError(f"--single_file: {file} exists and was not written by export; choose another file")


def write_single_file(student: Teacher, file: Path, record: dict[str, Any]) -> None:
    """Write all weights in the layout of the original Stable Diffusion code, completely or not at all.

    Raises:
        UserError: the family has no such layout, or the file cannot be written.
    """
    write_tensors(file, student.in_original_layout(), {"format": "pt", MARK: json.dumps(record)})


def _header_of(file: Path) -> dict[str, str]:
    """The strings in the header of a file; empty if it is none of safetensors."""
    try:
        with safe_open(file, "pt") as tensors:
            return tensors.metadata() or {}
    except (OSError, SafetensorError):
        return {}
