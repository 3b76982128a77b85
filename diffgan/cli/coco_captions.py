"""The verb `coco-captions`: captions of a COCO protocol from COCO's annotations."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffgan.errors import UserError
from diffgan.numbers import require
from diffgan.storage.atomic import write_atomic
from diffgan.storage.json_files import read_object
from diffgan.storage.outputs import require_file_place

MAX_BYTES = 512 << 20  # of the annotations: those of train2014 are 67 MB


class Caption(NamedTuple):
    """image_id: COCO's number of the image.  caption: one line."""

    image_id: int
    caption: str


def draw_captions(annotations: list[dict], count: int) -> list[Caption]:
    """One caption each of `count` images; images and captions are drawn from a fixed seed.

    The paper does not say which 30,000 of COCO2014's it took; these are ours.

    Raises:
        UserError: there are fewer images.
    """
    captions: dict[int, list[str]] = {}
    for annotation in sorted(annotations, key=lambda one: one["id"]):
        captions.setdefault(annotation["image_id"], []).append(" ".join(annotation["caption"].split()))
    if count > len(captions):
        raise UserError(f"{count} captions are required, but the annotations are of {len(captions)} images")
    random = np.random.Generator(np.random.Philox(0))
    images = random.permutation(sorted(captions))[:count]
    return [Caption(int(i), captions[i][int(random.random() * len(captions[i]))]) for i in images]


def write_captions(source: Path, count: int, target: Path) -> None:
    """Draw captions of COCO and write them as JSON lines, one caption for each image drawn.

    Beside each caption stand its image and the year that the annotations say, by which protocols refuse other years.

    Args:
        source: COCO's annotations, such as captions_val2014.json.
        count: number of images, at least 1.
        target: file to write, as the protocol's `captions` names it.

    Raises:
        UserError: `source` holds no captions or fewer images, or `target` cannot be written.
    """
    require("coco-captions: count", count, least=1)
    require_file_place(target)
    try:
        notes = read_object(source, MAX_BYTES)
        year = {"year": notes["info"]["year"]} if "year" in notes.get("info", {}) else {}
        lines = [json.dumps(caption._asdict() | year) for caption in draw_captions(notes["annotations"], count)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: is no captions_*.json of COCO ({type(error).__name__}: {error})") from error
    write_atomic(target, ("\n".join(lines) + "\n").encode())
