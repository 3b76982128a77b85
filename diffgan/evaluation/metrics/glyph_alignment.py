"""How far images of glyphs show what their captions ask for."""

from torch import Tensor

from diffgan.glyphs.attributes import asked, read_colours
from diffgan.glyphs.reader import GlyphReader
from diffgan.glyphs.recipe import COLOURS
from diffgan.glyphs.typefaces import CHARACTERS
from diffgan.images import from_uint8


def alignment(reader: GlyphReader, images: Tensor, captions: list[str]) -> dict[str, float]:
    """How far images (N, 3, 64, 64) uint8 show what their captions ask for.

    Returns:
        reading: share of the captions naming a character whose image is read as that character.
        colour: share of the colours named, inks and grounds, that are seen.
    """
    pictures = from_uint8(images)
    characters, colours, wishes = reader.read(pictures), read_colours(pictures), [asked(c) for c in captions]
    names = list(COLOURS)
    read = [CHARACTERS[c] == wish.character for c, wish in zip(characters, wishes, strict=True) if wish.character]
    inks = [names[seen[0]] == wish.ink for seen, wish in zip(colours, wishes, strict=True) if wish.ink]
    grounds = [names[seen[1]] == wish.ground for seen, wish in zip(colours, wishes, strict=True) if wish.ground]
    return {"reading": sum(read) / max(1, len(read)), "colour": sum(inks + grounds) / max(1, len(inks + grounds))}
