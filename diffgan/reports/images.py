"""Images in a page: small files as data URIs."""

import base64
import io
from itertools import product

from PIL import Image
from torch import Tensor

SMALL = 128  # pixels of a side up to which images are exact and shown enlarged
LARGEST = 512  # pixels of a side; larger images are reduced
QUALITIES = (90, 80, 70, 55, 40)  # of WebP


def data_uri(image: Tensor, limit: int) -> str:
    """An image as a data URI: a PNG if it is small, else a WebP of the best quality and size within the limit.

    Args:
        image: (3, H, W) uint8.
        limit: largest number of bytes of a WebP file.
    """
    drawn = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    if max(drawn.size) <= SMALL:
        return _uri("png", _file(drawn, "PNG", optimize=True))
    for side, quality in product((LARGEST, LARGEST // 2, LARGEST // 4), QUALITIES):
        reduced = drawn.copy()
        reduced.thumbnail((side, side), Image.Resampling.LANCZOS)
        content = _file(reduced, "WEBP", quality=quality, method=4)
        if len(content) <= limit:
            break
    return _uri("webp", content)


def _file(drawn: Image.Image, kind: str, **options: int | bool) -> bytes:
    stream = io.BytesIO()
    drawn.save(stream, kind, **options)
    return stream.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
