"""Captions of a COCO protocol from COCO's annotations: `python -m diffgan.cli.coco_captions JSON COUNT JSONL`."""

import json
import sys
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
    """Draw captions and write them as JSON lines; raises UserError if `source` holds none.

    Beside each caption stand its image and the year that the annotations say, by which protocols refuse other years.
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


if __name__ == "__main__":
    try:
        write_captions(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    except UserError as error:
        sys.exit(f"diffgan: error: {error}")
    except (IndexError, ValueError):
        sys.exit("usage: python -m diffgan.cli.coco_captions captions_val2014.json 30000 coco2014-30k.jsonl")
