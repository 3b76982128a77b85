"""Part 5: E-LatentLPIPS against its convolutions alone, and against decoding and LPIPS on pixels."""

import contextlib
import copy
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffgan.latent_space import PIXELS
from diffgan.perceptual.lpips import LatentLPIPS
from diffgan.teachers.autoencoders import decode_with_gradient
from diffgan.teachers.base import Teacher
from tests.bench.perceptual import convolutions, step
from tests.gpu.networks import SD15, random_distance, random_teacher, random_vgg_file
from tests.gpu.parts import Cell, Setting
from tests.gpu.timing import median_seconds, peak_gb, reset_peak

ROUNDS, DECODED = 3, 4  # DECODED: batch of the comparison with pixels


def cells(setting: Setting) -> list[Cell]:
    """Latents in batches of 4 and 32, then pixels; fp32 and bf16 each."""
    precisions = {"fp32": False, "bf16": True}
    latents = [
        Cell(f"latents, batch {batch}, {name}", partial(latent_distance, setting, batch, mixed))
        for batch in setting.choose((32, 4), (4,))
        for name, mixed in precisions.items()
    ]
    batch = setting.choose(DECODED, 1)
    pixels = [
        Cell(f"decode + LPIPS on pixels, batch {batch}, {name}", partial(pixel_distance, setting, batch, mixed))
        for name, mixed in precisions.items()
    ]
    return latents + pixels


def latent_distance(setting: Setting, batch: int, mixed: bool) -> dict[str, Any]:
    """Forward and backward pass of the distance, and of its convolutions alone."""
    side = setting.choose(64, 16)
    distance = setting.once("distance", lambda: random_distance(setting, _teacher(setting).space)).to(setting.device)
    generated, target = _inputs(setting, batch, side)
    with _precision(setting, mixed):
        own = _measure(setting, partial(step, distance, generated, target))
    dtype = torch.bfloat16 if mixed else torch.float32  # of weights and inputs, so that nothing is converted
    network = copy.deepcopy(distance.network).to(dtype)
    fast = [tensor.detach().to(dtype, memory_format=torch.channels_last) for tensor in (generated, target)]
    fast[0].requires_grad_(True)
    bare = _measure(setting, partial(convolutions, network, *fast))
    return {
        "ms": own["ms"],
        "convolutions, ms": bare["ms"],
        "ratio": own["ms"] / bare["ms"],
        "GB": own["GB"],
        "convolutions, GB": bare["GB"],
    }


def pixel_distance(setting: Setting, batch: int, mixed: bool) -> dict[str, Any]:
    """Forward and backward pass of decoding both latents and LPIPS with VGG16 on the images."""
    teacher = _teacher(setting)
    distance = setting.once("pixel distance", lambda: _pixel_lpips(setting)).to(setting.device)
    generated, target = _inputs(setting, batch, teacher.latent_shape[-1])

    def run() -> None:
        with torch.no_grad():
            real = decode_with_gradient(teacher.vae, target)
        torch.autograd.grad(distance(decode_with_gradient(teacher.vae, generated), real).sum(), generated)

    with _precision(setting, mixed):
        return _measure(setting, run, times=2)


def _pixel_lpips(setting: Setting) -> LatentLPIPS:
    with tempfile.TemporaryDirectory() as folder:
        return LatentLPIPS(random_vgg_file(folder, setting, PIXELS, omitted_pools=0))


def _teacher(setting: Setting) -> Teacher:
    return setting.once("teacher", lambda: random_teacher(setting, SD15))


def _inputs(setting: Setting, batch: int, side: int) -> tuple[Tensor, Tensor]:
    """Generated latents, which require a gradient, and target: (N, 4, side, side)."""
    generated, target = torch.randn(2, batch, 4, side, side, device=setting.device)
    return generated.requires_grad_(True), target


def _precision(setting: Setting, mixed: bool) -> contextlib.AbstractContextManager:
    return torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=mixed)


def _measure(setting: Setting, run: Callable[[], None], times: int = 5) -> dict[str, Any]:
    """Milliseconds of a call among others, and GB above what was allocated before."""
    run()
    before = reset_peak(setting.device)
    run()
    peak = peak_gb(setting.device, before)
    return {"ms": 1000 * median_seconds(run, setting.device, ROUNDS, times), "GB": peak}
