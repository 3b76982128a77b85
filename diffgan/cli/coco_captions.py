"""Captions of a COCO protocol from COCO's annotations: `python -m diffgan.cli.coco_captions JSON COUNT JSONL`."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffgan.errors import UserError
from diffgan.storage.atomic import write_atomic


class Caption(NamedTuple):
    """image_id: COCO's number of the picture.  caption: one line."""

    image_id: int
    caption: str


def drawn(annotations: list[dict], count: int) -> list[Caption]:
    """One caption each of `count` pictures, pictures and captions drawn from a fixed seed; with all of them, all.

    The paper does not say which 30,000 of COCO2014's it took; these are ours.

    Raises:
        UserError: there are fewer pictures.
    """
    captions: dict[int, list[str]] = {}
    for annotation in sorted(annotations, key=lambda one: one["id"]):
        captions.setdefault(annotation["image_id"], []).append(" ".join(annotation["caption"].split()))
    if count > len(captions):
        raise UserError(f"{count} captions asked for, but the annotations are of {len(captions)} pictures")
    random = np.random.Generator(np.random.Philox(0))
    pictures = random.permutation(sorted(captions))[:count]
    return [Caption(int(i), captions[i][int(random.random() * len(captions[i]))]) for i in pictures]


def write_captions(source: Path, count: int, target: Path) -> None:
    """Write the drawn captions as JSON lines; raises UserError if `source` holds none."""
    try:
        annotations = json.loads(source.read_text())["annotations"]
        lines = [json.dumps(caption._asdict()) for caption in drawn(annotations, count)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: is no captions_*.json of COCO ({type(error).__name__}: {error})") from error
    write_atomic(target, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    try:
        write_captions(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    except UserError as error:
        sys.exit(f"diffgan: error: {error}")
    except (IndexError, ValueError):
        sys.exit("usage: python -m diffgan.cli.coco_captions captions_val2014.json 30000 coco2014-30k.jsonl")
