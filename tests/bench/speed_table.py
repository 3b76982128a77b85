"""The table of speeds: what each regression loss costs in a training step, and what an image costs.

`python -m tests.bench.speed_table --scale glyphs --records FOLDER` writes one record for each row, in the form of
metrics.json; one that is there is kept. At glyphs scale the networks are those of the package. At sd15 and sdxl they
are of full size with random weights, on one CUDA GPU under bf16 autocast; speed does not depend on the weights.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from diffgan.evaluation.provenance import environment, write_json
from diffgan.latent_space import PIXELS
from diffgan.losses.regression import MSE
from diffgan.noise import draw_noise
from diffgan.perceptual.lpips import ELatentLPIPS, LatentLPIPS
from diffgan.perceptual.pixels import DecodedDistance
from diffgan.teachers.autoencoders import decode_with_gradient
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import load_teacher
from tests.bench.perceptual import peak_bytes
from tests.gpu.networks import random_distance, random_teacher, random_vgg_file
from tests.gpu.parts import Setting
from tests.gpu.timing import median_seconds

BATCHES = {"glyphs": 16, "sd15": 4, "sdxl": 1}  # latents of a loss; images of a generator
STEPS, GUIDANCE, ROUNDS = 50, 3.0, 5
PROMPT = "digit 7"


def main(words: list[str] | None = None) -> int:
    """Measure every row and write its record; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.speed_table", description=__doc__)
    parser.add_argument("--scale", choices=list(BATCHES), default="glyphs")
    parser.add_argument("--records", type=Path, required=True, help="folder of the records")
    options = parser.parse_args(words)
    if options.scale != "glyphs" and not torch.cuda.is_available():
        print(f"speed_table: error: scale {options.scale} requires a CUDA GPU", file=sys.stderr)
        return 1
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    setting, batch = Setting(False, device), BATCHES[options.scale]
    teacher = _teacher(setting, options.scale)
    rows: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(measure_loss, distance, teacher, batch, device)
        for name, distance in distances(setting, teacher, options.scale).items()
    }
    for name, steps, guidance in (("teacher", STEPS, GUIDANCE), ("student", 1, 1.0)):
        rows[name] = partial(measure_generation, teacher, steps, guidance, batch, device)
    for name, measure in rows.items():
        if (file := options.records / f"{name}.json").exists():
            print(f"{name}: is measured: {file}; remove it to measure it again")
        else:
            _write(file, options.scale, batch, measure())
    return 0


def _teacher(setting: Setting, scale: str) -> Teacher:
    return load_teacher("glyphs").to(setting.device) if scale == "glyphs" else random_teacher(setting, scale)


def distances(setting: Setting, teacher: Teacher, scale: str) -> dict[str, nn.Module]:
    """The compared losses: mean squared error, E-LatentLPIPS, LPIPS of decoded images."""
    if scale == "glyphs":
        latents, pixels = ELatentLPIPS("glyphs"), LatentLPIPS("glyphs-pixels")
    else:
        latents = random_distance(setting, teacher.space)
        with tempfile.TemporaryDirectory() as folder:
            pixels = LatentLPIPS(random_vgg_file(folder, setting, PIXELS, omitted_pools=0))
    return {
        "mse": MSE(),
        "pixel_lpips": DecodedDistance(pixels, partial(decode_with_gradient, teacher.vae)),
        "e_latent_lpips": latents,
    }


def measure_loss(distance: nn.Module, teacher: Teacher, batch: int, device: torch.device) -> dict[str, float]:
    """Milliseconds and peak bytes of a forward and backward pass, for a batch of latents."""
    distance.to(device)
    generated, target = torch.randn(2, batch, *teacher.latent_shape, device=device)
    generated.requires_grad_(True)

    def step() -> None:
        torch.autograd.grad(distance(generated, target).sum(), generated)

    with _autocast(device):
        return {"milliseconds": 1000 * median_seconds(step, device, ROUNDS), "peak_gb": peak_bytes(step) / 1e9}


@torch.no_grad()
def measure_generation(
    teacher: Teacher, steps: int, guidance: float, batch: int, device: torch.device
) -> dict[str, float]:
    """Milliseconds of one image of a batch: text encoders, network calls and decoder."""
    noise = draw_noise(range(batch), teacher.latent_shape).to(device)

    def generate() -> Tensor:
        return teacher.decode(teacher.solve(noise, teacher.encode([PROMPT] * batch), steps, guidance))

    with _autocast(device):
        rounds: Callable[[], float] = partial(median_seconds, generate, device, 3)
        return {"milliseconds": 1000 * rounds() / batch, "network_calls": float(steps)}


def _autocast(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _write(file: Path, scale: str, batch: int, values: dict[str, float]) -> None:
    metrics = {f"speed/{key}": value for key, value in values.items()}
    record = {"stage": "speed", "name": file.stem, "metrics": metrics, "config": {"scale": scale, "batch": batch}}
    write_json(record | environment(), file)
    print(f"{file.stem}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
