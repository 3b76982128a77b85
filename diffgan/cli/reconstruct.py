"""The verb `reconstruct`: single images recovered from noise under each perceptual distance, as figure and record."""

import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from diffgan.errors import UserError
from diffgan.evaluation.provenance import environment, write_json
from diffgan.glyphs.recipe import describe, paint
from diffgan.images import from_uint8, image_grid, png_bytes, read_rgb, rgb_tensor, to_uint8
from diffgan.noise import require_seeds
from diffgan.numbers import require
from diffgan.perceptual.reconstruction import compared_distances, reconstruct_latent
from diffgan.perceptual.weights import weights_file
from diffgan.plots import Curve, curves_png
from diffgan.storage.atomic import write_atomic
from diffgan.storage.digests import digest
from diffgan.storage.embedded import EMBEDDED
from diffgan.storage.outputs import require_folder_place
from diffgan.teachers.autoencoders import Encoder, decode_with_gradient
from diffgan.training.devices import require_device

GLYPH_SEED = 31
MOST_IMAGES = 1000  # they are optimized together
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def reconstruct(
    output: Path,
    images: Path | None = None,
    vae: str = EMBEDDED,
    weights: str = EMBEDDED,
    pixels: str = "glyphs-pixels",
    count: int = 6,
    steps: int = 1000,
    learning_rate: float = 0.05,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Reconstruct images from noise under each perceptual distance; write curves, an image grid and the metrics.

    Args:
        output: folder for `curves.png`, `images.png` and `metrics.json`.
        images: folder of target images of one size; by default glyphs.
        vae: autoencoder of the latents: a directory, "owner/model/vae" on the hub, or "glyphs".
        weights: weights of ELatentLPIPS for these latents, or "glyphs".
        pixels: weights of the same network for pixels, "glyphs-pixels", or "lpips" for the package of that name.
        count: number of images, at most 1000.
        steps: steps of Adam.
        learning_rate: at the first step.
        seed: of the noise that all distances start from.
        device: e.g. "cuda".
    """
    place = _check(output, count, steps, learning_rate, seed, device)
    torch.manual_seed(seed)
    encoder = Encoder(vae).to(place)
    target = encoder(load_images(images, count).to(place))
    start = torch.randn(target.shape).to(target)
    rows, curves, metrics = {"target": _decode(encoder.vae, target)}, {}, {}
    for name, distance in compared_distances(
        weights, pixels, encoder.space, partial(decode_with_gradient, encoder.vae)
    ).items():
        started = time.monotonic()
        latent, curves[name] = reconstruct_latent(distance.to(place), start, target, steps, learning_rate, name)
        rows[name] = _decode(encoder.vae, latent)
        metrics[name] = _metrics(curves[name], rows[name], rows["target"]) | {"seconds": time.monotonic() - started}
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics[name].items()))
    write_atomic(output / "images.png", png_bytes(image_grid({name: to_uint8(row) for name, row in rows.items()})))
    write_atomic(output / "curves.png", curves_png(curves, "step", "mean squared error of the latent"))
    settings = {"steps": steps, "learning_rate": learning_rate, "images": len(target), "seed": seed}
    record = {"stage": "reconstruct", "metrics": metrics, "weights": _digests(weights, pixels), "config": settings}
    write_json(record | environment(), output / "metrics.json")


def _check(output: Path, count: int, steps: int, learning_rate: float, seed: int, device: str) -> torch.device:
    """The device. Raises: UserError naming what is out of range, or where nothing can be written."""
    require("--count", count, least=1, most=MOST_IMAGES)
    require("--steps", steps, least=1)
    require("--learning_rate", learning_rate, above=0)
    require_seeds("--seed", seed)
    require_folder_place(output)
    return require_device("--device", device)


def load_images(folder: Path | None, count: int) -> Tensor:
    """The first images of a folder by name, or glyphs of the reference families: (N, 3, H, W) in [-1, 1].

    Raises:
        UserError: the folder has no image, a broken one, or images of different sizes.
    """
    if folder is None:
        return paint("reference", describe("reference", GLYPH_SEED, range(count)))
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:count]
    if not files:
        raise UserError(f"{folder}: holds no PNG, JPEG or WebP image")
    found = [rgb_tensor(read_rgb(file)) for file in files]
    if len({image.shape for image in found}) > 1:
        raise UserError(f"{folder}: the images are of different sizes; make them one size")
    return from_uint8(torch.stack(found))


_decode = torch.no_grad()(decode_with_gradient)


def _metrics(curve: Curve, images: Tensor, target: Tensor) -> dict[str, float]:
    """Final error of the latents, and peak signal-to-noise ratio in dB of the decoded images."""
    psnr = peak_signal_noise_ratio(images.clamp(-1, 1), target.clamp(-1, 1), data_range=2.0)
    return {"latent_mse": curve[-1][1], "psnr": float(psnr)}


def _digests(weights: str, pixels: str) -> dict[str, str]:
    files = {"latents": weights_file(weights), "pixels": weights_file(pixels)}
    return {name: digest(file) for name, file in files.items() if file.is_file()}
