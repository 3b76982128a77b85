"""Images as the networks of an evaluation receive them: centred squares of one size, uint8."""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffgan.errors import UserError
from diffgan.images import read_rgb, rgb_tensor


def center_square(image: Image.Image, side: int) -> Tensor:
    """The largest centred square of an image, Lanczos-resized: (3, side, side) uint8 (as mingukkang/GigaGAN does)."""
    short = min(image.size)
    left, top = ((length - short) // 2 for length in image.size)
    square = image.convert("RGB").crop((left, top, left + short, top + short))
    resized = square if short == side else square.resize((side, side), Image.Resampling.LANCZOS)
    return rgb_tensor(resized).contiguous()


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
