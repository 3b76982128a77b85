"""Images as every network of an evaluation receives them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffgan.errors import UserError
from diffgan.noise import draw_noise


def squared(picture: Image.Image, side: int) -> Tensor:
    """The largest centred square of a picture, Lanczos-resized: (3, side, side) uint8 (as mingukkang/GigaGAN does)."""
    short = min(picture.size)
    left, top = ((length - short) // 2 for length in picture.size)
    square = picture.convert("RGB").crop((left, top, left + short, top + short))
    resized = square if short == side else square.resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def resized(images: Tensor, side: int) -> Tensor:
    """Generated pictures (N, 3, H, W) uint8 on the CPU -> (N, 3, side, side) uint8."""
    return torch.stack([squared(Image.fromarray(image.permute(1, 2, 0).numpy()), side) for image in images])


def read_pictures(files: Iterable[Path], side: int) -> Tensor:
    """Files of the reference -> (N, 3, side, side) uint8; raises UserError naming a file that is no picture."""
    pictures = []
    for file in files:
        try:
            with Image.open(file) as picture:
                pictures.append(squared(picture, side))
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read as a picture ({error}); replace or remove it") from error
    return torch.stack(pictures)


def with_grain(images: Tensor, deviation: float, seeds: Sequence[int]) -> Tensor:
    """Images (N, 3, H, W) uint8 plus Gaussian noise of that standard deviation in levels, clipped to 0 .. 255.

    Args:
        seeds: N, of each image's noise.
    """
    if deviation == 0:
        return images
    grain = deviation * draw_noise(seeds, tuple(images.shape[1:]))
    return (images.float() + grain).round().clamp(0, 255).to(torch.uint8)
