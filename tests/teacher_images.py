"""Folders of a teacher's images, as `diffgan evaluate --save_images` writes them."""

import json
from pathlib import Path

from PIL import Image
from torch import Tensor


def write_teacher_images(folder: Path, name: str, digest: str, images: Tensor) -> Path:
    """Write images (N, 3, H, W) uint8 of the rows of a protocol and their index; returns the folder."""
    folder.mkdir()
    for row, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{row:05}.png")
    record = {"protocol": name, "protocol_digest": digest, "images": len(images), "layout": "flat"}
    (folder / "images.json").write_text(json.dumps(record))
    return folder
