"""Single-image reconstruction: how far each distance leads from noise to a target (paper, figure of section 3.2)."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio
from tqdm import trange

from diffgan.errors import UserError
from diffgan.evaluation.provenance import environment, write_json
from diffgan.glyphs.recipe import describe, paint
from diffgan.images import from_uint8, save_image_grid, to_uint8
from diffgan.latent_space import PIXELS, LatentSpace
from diffgan.perceptual.lpips import ELatentLPIPS, LatentLPIPS
from diffgan.perceptual.weights import weights_file
from diffgan.plots import Curve, save_curves
from diffgan.storage.digests import digest
from diffgan.storage.embedded import EMBEDDED, embedded
from diffgan.teachers.autoencoders import Encoder

MEASURED = 40  # points of a curve
GLYPH_SEED = 31


class Decoded(nn.Module):
    """A distance of images as a distance of latents: both are decoded first."""

    def __init__(self, distance: nn.Module, decode: Callable[[Tensor], Tensor]):
        super().__init__()
        self.distance, self.decode = distance, decode

    def forward(self, generated: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.decode(target)
        return self.distance(self.decode(generated), goal).flatten()


def descend(
    distance: nn.Module, start: Tensor, target: Tensor, steps: int, learning_rate: float, name: str
) -> tuple[Tensor, Curve]:
    """Adam on a latent under a distance to the target, its rate falling linearly to zero.

    Args:
        start, target: (N, C, H, W); each of the N is a problem of its own.

    Returns:
        The latents of the end, and (step, mean squared error of the latents) along the way.
    """
    latent = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latent], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    curve = []
    for step in trange(steps, desc=name, unit="step"):
        if step % max(1, steps // MEASURED) == 0:
            curve.append((step, float((latent.detach() - target).square().mean())))
        optimizer.zero_grad()
        distance(latent, target).sum().backward()
        optimizer.step()
        schedule.step()
    curve.append((steps, float((latent.detach() - target).square().mean())))
    return latent.detach(), curve


def distances(
    weights: str, pixels: str, space: LatentSpace, decode: Callable[[Tensor], Tensor]
) -> dict[str, nn.Module]:
    """The rows of the figure: LPIPS of decoded pixels, LatentLPIPS, and E-LatentLPIPS by groups of its ensemble."""
    rows: dict[str, nn.Module] = {"LPIPS, pixels": Decoded(_pixel_distance(pixels), decode)}
    rows["LatentLPIPS"] = LatentLPIPS(weights)
    rows["LatentLPIPS"].check_space(space)
    for groups in ("b", "bg", "bgo"):
        rows[f"E-LatentLPIPS {groups}"] = ELatentLPIPS(weights, groups)
    return rows


def _pixel_distance(pixels: str) -> nn.Module:
    if pixels != "lpips":
        distance = LatentLPIPS(pixels)
        distance.check_space(PIXELS)
        return distance
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise UserError("pixels lpips: the package is not installed; pip install lpips") from error
    return LPIPS(net="vgg").requires_grad_(False)


def _load_images(folder: Path | None, count: int) -> Tensor:
    """(N, 3, H, W) in [-1, 1]: images of a folder, all of one size, or glyphs of the reference families."""
    if folder is None:
        return paint("reference", describe("reference", GLYPH_SEED, range(count)))
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))[
        :count
    ]
    if not files:
        raise UserError(f"{folder}: holds no PNG, JPEG or WebP image")
    arrays = [np.array(Image.open(file).convert("RGB")) for file in files]
    if len({array.shape for array in arrays}) > 1:
        raise UserError(f"{folder}: the images are of different sizes; make them one size")
    return from_uint8(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))


def reconstruct(
    output: Path,
    images: Path | None = None,
    vae: str = EMBEDDED,
    weights: str = EMBEDDED,
    pixels: str = "lpips",
    count: int = 6,
    steps: int = 1000,
    learning_rate: float = 0.05,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Lead latents from noise to images under each perceptual distance; write curves, a sheet and the figures.

    Args:
        output: folder for `curves.png`, `images.png` and `metrics.json`.
        images: folder of target images of one size; by default glyphs.
        vae: autoencoder of the latents: a directory, "owner/model/vae" on the hub, or "glyphs".
        weights: weights of ELatentLPIPS for these latents, or "glyphs".
        pixels: weights of the same network for pixels, or "lpips" for the package of that name.
        count: how many images.
        steps: steps of Adam.
        learning_rate: its rate at the start.
        seed: of the noise that all distances start from.
        device: e.g. "cuda".
    """
    torch.manual_seed(seed)
    encoder = Encoder(str(embedded("teacher/vae")) if vae == EMBEDDED else vae).to(device)
    target = encoder(_load_images(images, count).to(device))
    start = torch.randn(target.shape).to(target)
    rows, curves, figures = {"target": _decode(encoder, target)}, {}, {}
    decode = partial(_decode_with_gradient, encoder)
    for name, distance in distances(weights, pixels, encoder.space, decode).items():
        began = time.monotonic()
        latent, curves[name] = descend(distance.to(device), start, target, steps, learning_rate, name)
        rows[name] = _decode(encoder, latent)
        figures[name] = _figures(curves[name], rows[name], rows["target"]) | {"seconds": time.monotonic() - began}
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures[name].items()))
    save_image_grid(output / "images.png", {name: to_uint8(row) for name, row in rows.items()})
    save_curves(output / "curves.png", curves, "step", "mean squared error of the latent")
    settings = {"steps": steps, "learning_rate": learning_rate, "images": len(target), "seed": seed}
    record = {"stage": "reconstruct", "metrics": figures, "weights": _digests(weights, pixels), "config": settings}
    write_json(record | environment(), output / "metrics.json")


def _decode_with_gradient(encoder: Encoder, latent: Tensor) -> Tensor:
    return encoder.vae.decode(encoder.space.to_autoencoder(latent), return_dict=False)[0]


_decode = torch.no_grad()(_decode_with_gradient)


def _figures(curve: Curve, images: Tensor, target: Tensor) -> dict[str, float]:
    psnr = peak_signal_noise_ratio(images.clamp(-1, 1), target.clamp(-1, 1), data_range=2.0)
    return {"latent_mse": curve[-1][1], "psnr": float(psnr)}


def _digests(weights: str, pixels: str) -> dict[str, str]:
    files = {"latents": weights_file(weights), "pixels": Path(pixels)}
    return {name: digest(file) for name, file in files.items() if file.is_file()}
