"""Whether images of glyphs show what their captions ask for."""

import torch
from torch import Tensor

from diffgan.evaluation.image_batch import ImageBatch
from diffgan.evaluation.metrics.base import ALL, Column, ImageMetric
from diffgan.evaluation.real_images import RealImages
from diffgan.glyphs.attributes import parse_caption, read_colours
from diffgan.glyphs.reader import GlyphReader, load_reader
from diffgan.glyphs.recipe import COLOURS
from diffgan.glyphs.typefaces import CHARACTERS
from diffgan.images import from_uint8


class GlyphAlignment(ImageMetric):
    """`alignment` of images and captions, also of real images (`..._real`).

    Keys: reading, colour, reading_real, colour_real.

    Args:
        reader: names the character of an image; by default the one that ships with the package.
        selected: the protocol's rows that count.
        reference: name of the set of real images; None: without their values.
    """

    columns = (
        Column("reading", "reading", 3, real_key="reading_real", better="higher"),
        Column("colour", "colours", 3, real_key="colour_real", better="higher"),
    )

    def __init__(self, reader: GlyphReader | None = None, selected: slice = ALL, reference: str | None = "reference"):
        super().__init__(selected)
        self.reader, self.reference_name = reader, reference
        self.real: dict[str, float] = {}

    def load(self) -> None:
        if self.reader is None:
            self.reader = load_reader()

    def setup(self, real: RealImages) -> None:
        if self.reference_name is None:
            return
        images, captions = real.images(self.reference_name), real.captions(self.reference_name)
        matches = caption_matches(self.reader, images.to(self.device), captions)
        self.real = {f"{name}_real": value for name, value in alignment(matches).items()}

    def measure(self, batch: ImageBatch) -> Tensor:
        return caption_matches(self.reader, batch.images.to(batch.device), batch.prompts)

    def summarize(self, measured: Tensor) -> dict[str, float]:
        return alignment(measured) | self.real


def caption_matches(reader: GlyphReader, images: Tensor, captions: list[str]) -> Tensor:
    """Compare images (N, 3, 64, 64) uint8 with N captions.

    Returns:
        (N, 4) int64: whether the caption names a character, whether the image is read as it; how many colours (ink,
        ground) the caption names, how many of them are seen.
    """
    images, names = from_uint8(images), list(COLOURS)
    rows = []
    for character, (ink, ground), caption in zip(
        reader.read(images).tolist(), read_colours(images).tolist(), captions, strict=True
    ):
        wish = parse_caption(caption)
        named = [(wish.ink, names[ink]), (wish.ground, names[ground])]
        colours = [shown == wanted for wanted, shown in named if wanted is not None]
        is_named = wish.character is not None
        rows.append([is_named, is_named and CHARACTERS[character] == wish.character, len(colours), sum(colours)])
    return torch.tensor(rows, dtype=torch.int64)


def alignment(matches: Tensor) -> dict[str, float]:
    """Shares of what captions ask for that images show, of `caption_matches` (N, 4).

    Returns:
        reading: share of the captions naming a character whose image is read as that character.
        colour: share of the colours named, inks and grounds, that are seen.
    """
    characters, read, colours, seen = matches.sum(0).tolist()
    return {"reading": read / max(1, characters), "colour": seen / max(1, colours)}
