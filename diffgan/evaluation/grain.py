"""Grain: Gaussian noise that both sides of a distance get before features are computed.

Rendered glyphs are perfectly flat. Without grain an unevenness of 2 levels, which nobody sees, moves the distances of
ImageNet features more than a plain blur does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffgan.noise import draw_noise

GENERATED_SEED, REAL_SEED = 3_200_000_000, 3_300_000_000  # of the first image; one seed an image


class View(NamedTuple):
    """How feature extractors get images.

    name: what metric keys and headings are extended by; "" for the images as they are.
    grain: standard deviation of the noise, in levels of 255.
    patch: side of the centred square of the image in its full size that is seen, in pixels; 0: the image as prepared.
    """

    name: str
    grain: float
    patch: int = 0

    @property
    def suffix(self) -> str:
        """End of a metric's key: "" or "_<name>"."""
        return f"_{self.name}" if self.name else ""


PLAIN, GRAIN, PATCH = View("", 0.0), View("grain", 8.0), View("patch", 0.0, 299)


def with_grain(images: Tensor, deviation: float, seeds: Sequence[int]) -> Tensor:
    """Add Gaussian noise to images and clip them to 0 .. 255.

    Args:
        images: (N, 3, H, W) uint8.
        deviation: standard deviation of the noise, in levels of 255.
        seeds: N, of each image's noise.

    Returns:
        (N, 3, H, W) uint8.
    """
    if deviation == 0:
        return images
    grain = deviation * draw_noise(seeds, tuple(images.shape[1:]))
    return (images.float() + grain).round().clamp(0, 255).to(torch.uint8)
