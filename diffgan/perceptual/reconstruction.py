"""Reconstruction of single images: gradient descent on a latent under a distance (paper, figure of section 3.2)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import trange

from diffgan.errors import UserError
from diffgan.latent_space import PIXELS, LatentSpace
from diffgan.perceptual.lpips import ELatentLPIPS, LatentLPIPS
from diffgan.plots import Curve

CURVE_POINTS = 40
ENSEMBLES = ("b", "bg", "bgo")


class DecodedDistance(nn.Module):
    """A distance of images as a distance of latents: d(decode(x), decode(y)).

    Args:
        distance: of images (N, 3, H, W).
        decode: latents of the diffusion model (N, C, H, W) -> images in [-1, 1], differentiable.
    """

    def __init__(self, distance: nn.Module, decode: Callable[[Tensor], Tensor]):
        super().__init__()
        self.distance, self.decode = distance, decode

    def forward(self, generated: Tensor, target: Tensor) -> Tensor:
        """generated, target: (N, C, H, W) -> (N,); no gradient to target."""
        with torch.no_grad():
            target_images = self.decode(target)
        return self.distance(self.decode(generated), target_images).flatten()


def compared_distances(
    weights: str, pixels: str, space: LatentSpace, decode: Callable[[Tensor], Tensor]
) -> dict[str, nn.Module]:
    """The rows of the figure: LPIPS of decoded images, LatentLPIPS, and E-LatentLPIPS with three ensembles.

    Args:
        weights: weight file of ELatentLPIPS, or "glyphs".
        pixels: weight file of the same network for pixels, or "lpips" for the package of that name.
        space: latent space of the latents.
        decode: as in `DecodedDistance`.

    Raises:
        UserError: the weights belong to another latent space, or the package lpips is not installed.
    """
    distances: dict[str, nn.Module] = {"LPIPS, pixels": DecodedDistance(_pixel_distance(pixels), decode)}
    distances["LatentLPIPS"] = LatentLPIPS(weights)
    distances["LatentLPIPS"].check_space(space)
    for groups in ENSEMBLES:
        distances[f"E-LatentLPIPS {groups}"] = ELatentLPIPS(weights, groups)
    return distances


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
