"""The files of a COCO protocol: captions and real images, and whether they are the ones that the protocol means."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from diffgan.errors import UserError
from diffgan.prompts import PromptFile
from diffgan.prompts.source import Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
REMEDY = "draw the captions again with `diffgan coco-captions` from the annotations of the right year"


def read_captions(place: str, count: int, protocol: str) -> list[str]:
    """The first `count` captions of a prompt file; raises UserError if there are fewer."""
    file = PromptFile(place)
    if len(file) < count:
        raise UserError(f"{place}: {len(file)} captions, but protocol {protocol} needs {count}")
    return file.read(range(count))


def check_year(place: str, count: int, year: int, reference: str | None, protocol: str) -> None:
    """Refuse captions of another year of COCO.

    `diffgan coco-captions` writes the annotations' year and each caption's image beside it. Files without them cannot
    be checked. A year tells most: the images of val2017 are among those of 2014.

    Raises:
        UserError: the captions are of another year, or of an image that is not among the real ones.
    """
    records = list(islice(_records(place), count))
    others = [record["year"] for record in records if record.get("year", year) != year]
    if others:
        raise UserError(f"{place}: captions of COCO {others[0]}, but protocol {protocol} is of {year}; {REMEDY}")
    numbers = image_numbers(reference_files(reference)) if reference else set()
    others = [record["image_id"] for record in records if "image_id" in record and record["image_id"] not in numbers]
    if numbers and others:
        raise UserError(
            f"{place}: image {others[0]} of a caption is not among the real images in {reference} (as are "
            f"{len(others) - 1} others): captions or images are of another year; {REMEDY}"
        )


def _records(place: str) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON lines, which was read as a prompt file before; of other formats none."""
    source = Source(place)
    if source.suffix not in (".jsonl", ".ndjson"):
        return
    for piece in source.pieces(source.begin()):
        yield from (json.loads(line) for line in piece.decode().split("\n") if line.strip())


def image_numbers(files: list[Path]) -> set[int]:
    """COCO's numbers of images, from names such as `COCO_val2014_000000000042.jpg`; empty if a name has none."""
    matches = [re.fullmatch(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})", file.stem) for file in files]
    return {int(match[1]) for match in matches} if all(matches) else set()


def reference_files(reference: str) -> list[Path]:
    """The images of a folder in the order of their names, or one .npz of statistics; none if there is neither."""
    folder = Path(reference)
    if folder.suffix == ".npz" and folder.is_file():
        return [folder]
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
