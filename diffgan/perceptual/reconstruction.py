"""Reconstruction of single images: gradient descent on a latent under a distance (paper, figure of section 3.2)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import trange

from diffgan.latent_space import LatentSpace
from diffgan.perceptual.lpips import ELatentLPIPS, LatentLPIPS
from diffgan.perceptual.pixels import DecodedDistance, pixel_distance
from diffgan.plots import Curve

CURVE_POINTS = 40
ENSEMBLES = ("b", "bg", "bgo")


def compared_distances(
    weights: str, pixels: str, space: LatentSpace, decode: Callable[[Tensor], Tensor]
) -> dict[str, nn.Module]:
    """The rows of the figure: LPIPS of decoded images, LatentLPIPS, and E-LatentLPIPS with three ensembles.

    Args:
        weights: weight file of ELatentLPIPS, or "glyphs".
        pixels: weights of LPIPS in pixels, as of `PixelLPIPS`.
        space: latent space of the latents.
        decode: as in `DecodedDistance`.

    Raises:
        UserError: the weights belong to another latent space, or the package lpips is not installed.
    """
    distances: dict[str, nn.Module] = {"LPIPS, pixels": DecodedDistance(pixel_distance(pixels), decode)}
    distances["LatentLPIPS"] = LatentLPIPS(weights)
    distances["LatentLPIPS"].check_space(space)
    for groups in ENSEMBLES:
        distances[f"E-LatentLPIPS {groups}"] = ELatentLPIPS(weights, groups)
    return distances


def reconstruct_latent(
    distance: nn.Module, start: Tensor, target: Tensor, steps: int, learning_rate: float, name: str
) -> tuple[Tensor, Curve]:
    """Minimise a distance to the target over a latent, with Adam and a linear decay of the learning rate to 1%.

    Args:
        distance: (N, C, H, W) twice -> (N,).
        start, target: (N, C, H, W); the N samples are independent problems.
        steps: steps of Adam.
        learning_rate: at the first step.
        name: label of the progress bar.

    Returns:
        The final latents, and a curve of (step, mean squared error of the latents) with about CURVE_POINTS points.
    """
    latent = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latent], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    curve = []
    for step in trange(steps, desc=name, unit="step"):
        if step % max(1, steps // CURVE_POINTS) == 0:
            curve.append((step, _squared_error(latent, target)))
        optimizer.zero_grad()
        distance(latent, target).sum().backward()
        optimizer.step()
        schedule.step()
    curve.append((steps, _squared_error(latent, target)))
    return latent.detach(), curve


def _squared_error(latent: Tensor, target: Tensor) -> float:
    return float((latent.detach() - target).square().mean())
