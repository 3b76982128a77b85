"""Images as the networks of an evaluation receive them: centred squares of one size, uint8."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffgan.errors import UserError


def center_square(image: Image.Image, side: int) -> Tensor:
    """The largest centred square of an image, Lanczos-resized: (3, side, side) uint8 (as mingukkang/GigaGAN does)."""
    short = min(image.size)
    left, top = ((length - short) // 2 for length in image.size)
    square = image.convert("RGB").crop((left, top, left + short, top + short))
    resized = square if short == side else square.resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def resize_images(images: Tensor, side: int) -> Tensor:
    """Generated images (N, 3, H, W) uint8 on the CPU -> (N, 3, side, side) uint8."""
    return torch.stack([center_square(Image.fromarray(image.permute(1, 2, 0).numpy()), side) for image in images])


def read_images(files: Iterable[Path], side: int) -> Tensor:
    """Read files of real images -> (N, 3, side, side) uint8; raises UserError naming a file that is no image."""
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(center_square(image, side))
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read as an image ({error}); replace or remove it") from error
    return torch.stack(images)
