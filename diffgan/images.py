"""Sheets of pictures: named rows, captioned columns."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE, GAP, MARGIN, LINE, LINES = 112, 6, 118, 12, 4


def save_sheet(path: Path, rows: dict[str, Tensor], captions: list[str] | None = None) -> np.ndarray:
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
