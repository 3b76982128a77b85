"""Images as bytes: conversion from and to [-1, 1], and grids of images as PNG files."""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffgan.errors import UserError, first_line

CONVERTED = ("1", "L", "P", "RGB", "CMYK", "YCbCr")  # Pillow's modes of 8 bits a channel without transparency
TRANSPARENT = ("RGBA", "LA", "PA")
MAX_PIXELS = 1 << 26  # of a file that is read: 8192 x 8192

# Sizes in a grid, in pixels; CAPTION_LINES and the widths of text are in lines and characters.
SIDE, GAP, MARGIN, LINE_HEIGHT = 112, 6, 118, 12
CAPTION_LINES, NAME_CHARACTERS, CAPTION_CHARACTERS = 4, 18, 20


def read_rgb(file: Path, remedy: str = "replace or remove it") -> Image.Image:
    """An image file as RGB. Grey, palette and CMYK images are converted by Pillow, as FID's other tools do.

    Args:
        remedy: ends the message.

    Raises:
        UserError: the file is missing, no image, truncated, or has more than `MAX_PIXELS`; or converting it would lose
            more than colour: it has 16 bits or floating-point numbers a channel, or transparent pixels.
    """
    try:
        with open_image(file) as image:
            if not _is_convertible(image):
                raise ValueError(f"its mode is {image.mode}: save it as 8-bit RGB without transparency")
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as an image ({first_line(error)}); {remedy}") from error


def open_image(file: Path) -> Image.Image:
    """An image file with its pixels decoded, whatever its mode.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no image, is truncated, or has more than `MAX_PIXELS`.
    """
    image = None
    try:
        image = Image.open(file)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
        image.load()
        return image
    except Exception as error:  # the decoders of Pillow raise many kinds
        if image is not None:
            image.close()
        if isinstance(error, OSError | ValueError):
            raise
        raise ValueError(f"{type(error).__name__}: {first_line(error)}") from error


def rgb_tensor(image: Image.Image) -> Tensor:
    """An image -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _is_convertible(image: Image.Image) -> bool:
    """Whether RGB shows what an image shows."""
    if image.mode in TRANSPARENT:
        return image.getchannel("A").getextrema()[0] == 255
    return image.mode in CONVERTED and "transparency" not in image.info


def from_uint8(images: Tensor) -> Tensor:
    """Images (..., H, W) in [0, 255], usually uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images (..., H, W) in [-1, 1] -> uint8 in [0, 255], rounded to the nearest level and clipped."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def finite_uint8(images: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> Tensor:
    """`to_uint8` for images that are saved or evaluated: NaN is refused, which would otherwise become black.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        prompts, seeds: of the N images; the message names those of the image that is refused.

    Returns:
        (N, 3, H, W) uint8.

    Raises:
        UserError: an image contains NaN or infinity.
    """
    bad = ~images.isfinite().flatten(1).all(1)
    if bad.any():
        row = int(bad.int().argmax())
        seed = "" if seeds is None else f" (seed {seeds[row]})"
        problem = f"the image of {prompts[row]!r}{seed} is not finite"
        raise UserError(f"{problem}: the weights are damaged or overflow; use an earlier checkpoint or float32")
    return to_uint8(images)


def png_bytes(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG."""
    buffer = BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


def image_grid(rows: dict[str, Tensor], captions: list[str] | None = None) -> Image.Image:
    """Rows of images, the rows' names on the left and captions below the columns.

    Args:
        rows: name -> (N, 3, H, W) uint8.
        captions: N texts, or None for a grid without captions.
    """
    columns = max(len(images) for images in rows.values())
    foot = CAPTION_LINES * LINE_HEIGHT if captions else 0
    width, height = _corner(len(rows), columns)
    grid = Image.new("RGB", (width, height + foot), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(size=11)
    for row, (name, images) in enumerate(rows.items()):
        _, top = _corner(row, 0)
        text = textwrap.fill(name, NAME_CHARACTERS)
        pen.multiline_text((GAP, top + SIDE // 2 - LINE_HEIGHT), text, "black", font)
        for column, image in enumerate(images):
            grid.paste(_thumbnail(image), _corner(row, column))
    for column, caption in enumerate(captions or []):
        text = textwrap.fill(caption or "(no caption)", CAPTION_CHARACTERS)
        pen.multiline_text(_corner(len(rows), column), text, "black", font, spacing=1)
    return grid


def _corner(row: int, column: int) -> tuple[int, int]:
    """Pixel (x, y) of the upper left corner of an image in a grid."""
    return MARGIN + column * (SIDE + GAP), GAP + row * (SIDE + GAP)


def _thumbnail(image: Tensor) -> Image.Image:
    """image: (3, H, W) uint8 -> an image of SIDE x SIDE pixels."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
