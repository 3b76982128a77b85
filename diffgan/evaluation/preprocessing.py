"""Images as the networks of an evaluation receive them: centred squares of one size, uint8."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffgan.errors import UserError, first_line

CONVERTED = ("1", "L", "P", "RGB", "CMYK", "YCbCr")  # Pillow's modes of 8 bits a channel without transparency
TRANSPARENT = ("RGBA", "LA", "PA")


def center_square(image: Image.Image, side: int) -> Tensor:
    """The largest centred square of an image, Lanczos-resized: (3, side, side) uint8 (as mingukkang/GigaGAN does)."""
    short = min(image.size)
    left, top = ((length - short) // 2 for length in image.size)
    square = image.convert("RGB").crop((left, top, left + short, top + short))
    resized = square if short == side else square.resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def center_patch(images: Tensor, side: int) -> Tensor:
    """The centred squares of `side` pixels of images (N, 3, H, W), not resized; raises UserError if there are none."""
    height, width = images.shape[-2:]
    if min(height, width) < side:
        raise UserError(f"a patch of {side} pixels cannot be cut out of images of {height}x{width}; omit this metric")
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def resize_images(images: Tensor, side: int) -> Tensor:
    """Generated images (N, 3, H, W) uint8 on the CPU -> (N, 3, side, side) uint8."""
    return torch.stack([center_square(Image.fromarray(image.permute(1, 2, 0).numpy()), side) for image in images])


def read_images(files: Iterable[Path], side: int) -> Tensor:
    """Read files of real images -> (N, 3, side, side) uint8; errors as `read_rgb`."""
    return torch.stack([center_square(read_rgb(file), side) for file in files])


def read_rgb(file: Path) -> Image.Image:
    """An image file as RGB. Grey, palette and CMYK images are converted by Pillow, as FID's other tools do.

    Raises:
        UserError: the file is no image or is truncated; or converting it would lose more than colour: it has 16 bits
            or floating-point numbers a channel, or transparent pixels.
    """
    try:
        with Image.open(file) as image:
            image.load()
            if not _is_convertible(image):
                raise ValueError(f"its mode is {image.mode}: save it as 8-bit RGB without transparency")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: cannot be read as an image ({first_line(error)}); replace or remove it") from error


def _is_convertible(image: Image.Image) -> bool:
    """Whether RGB shows what an image shows."""
    if image.mode in TRANSPARENT:
        return image.getchannel("A").getextrema()[0] == 255
    return image.mode in CONVERTED and "transparency" not in image.info
