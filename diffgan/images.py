"""Sheets of pictures: named rows, captioned columns."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffgan.errors import UserError

SIDE, GAP, MARGIN, LINE, LINES = 112, 6, 118, 12, 4


def save_image_grid(path: Path, rows: dict[str, Tensor], captions: list[str] | None = None) -> np.ndarray:
    """Write a PNG of rows of pictures with the rows' names on the left and the captions below.

    Args:
        path: the PNG; its folder is made.
        rows: name -> (N, 3, H, W) uint8.
        captions: N texts, or none at all.

    Returns:
        The sheet, (height, width, 3) uint8.
    """
    columns = max(len(images) for images in rows.values())
    width, foot = MARGIN + columns * (SIDE + GAP), LINES * LINE if captions else 0
    sheet = Image.new("RGB", (width, len(rows) * (SIDE + GAP) + GAP + foot), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for row, (name, images) in enumerate(rows.items()):
        top = GAP + row * (SIDE + GAP)
        pen.multiline_text((GAP, top + SIDE // 2 - LINE), textwrap.fill(name, 18), "black", font)
        for column, image in enumerate(images):
            picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (MARGIN + column * (SIDE + GAP), top))
    for column, caption in enumerate(captions or []):
        place = (MARGIN + column * (SIDE + GAP), GAP + len(rows) * (SIDE + GAP))
        pen.multiline_text(place, textwrap.fill(caption or "(no caption)", 20), "black", font, spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return np.asarray(sheet)


def to_uint8(images: Tensor) -> Tensor:
    """Images (..., H, W) in [-1, 1] -> uint8 in [0, 255], rounded to the nearest level, clipped outside."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def finite_uint8(images: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> Tensor:
    """As `to_uint8`, of images that are kept or evaluated: one that is not finite would turn black unnoticed.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        prompts, seeds: N each, of the images; they name the one that is refused.

    Raises:
        UserError: an image holds NaN or infinity.
    """
    bad = ~images.isfinite().flatten(1).all(1)
    if bad.any():
        row = int(bad.int().argmax())
        seed = "" if seeds is None else f" (seed {seeds[row]})"
        reason = f"the image of {prompts[row]!r}{seed} is not finite"
        raise UserError(f"{reason}: the weights are damaged or overflow; use an earlier checkpoint or float32")
    return to_uint8(images)
