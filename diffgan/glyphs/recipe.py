"""Captioned images of glyphs: the draw of their attributes, the wording of the caption, the painting of the image.

Every image is a function of (split, seed, index); there is no other state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffgan.glyphs.typefaces import CATEGORIES, CHARACTERS, SIDE, Typefaces, typefaces
from diffgan.images import from_uint8

# Ink and ground are always one dark and one light colour, so that the shape is visible.
DARK = {
    "black": (16, 16, 16),
    "dark red": (140, 16, 28),
    "blue": (28, 60, 180),
    "dark green": (16, 88, 44),
    "purple": (104, 28, 132),
    "brown": (104, 60, 24),
}
LIGHT = {
    "white": (250, 250, 250),
    "cream": (250, 232, 190),
    "yellow": (252, 216, 40),
    "pink": (252, 176, 196),
    "sky": (150, 208, 250),
    "mint": (160, 232, 180),
}
COLOURS = {**DARK, **LIGHT}
PALETTE = from_uint8(torch.tensor(list(COLOURS.values())))  # (12, 3) in [-1, 1]

SCALE = 1.3  # mean scale of the archive's glyphs, whose capital H is 34 pixels high
LOG2_SCALE = 0.12  # largest deviation of the binary logarithm of the scale
REACH_PIXELS = 29.0  # wide glyphs are scaled less, so that no ink is farther from the centre than this
SHIFT_PIXELS = 3.0  # largest shift along each axis
TURN_DEGREES = 6.0  # largest rotation
# Probability that a caption mentions an attribute.
MENTIONED = {"character": 0.9, "weight": 0.5, "slant": 0.5, "category": 0.6, "ink": 0.65, "ground": 0.65}
DRAWS = 24  # uniform numbers per image; some are not used


@dataclass(frozen=True)
class Glyph:
    """Description of one image: indices into the split's typefaces, CHARACTERS and COLOURS, placement and caption."""

    typeface: int
    character: int
    ink: int
    ground: int
    shift: tuple[float, float]  # pixels right and down
    scale: float
    turn: float  # radians, counter-clockwise
    caption: str


def uniforms(seed: int, indices: Sequence[int]) -> np.ndarray:
    """(N, DRAWS) float64 in [0, 1); row i is a function of (seed, indices[i]) alone."""
    return np.stack([np.random.Generator(np.random.Philox(key=[seed, index])).random(DRAWS) for index in indices])


def describe(split: str, seed: int, indices: Sequence[int]) -> list[Glyph]:
    """Draw the glyphs of a split.

    Args:
        split: "train", "validation" or "reference".
        seed: another seed gives other glyphs.
        indices: a glyph is a function of (split, seed, index).

    Returns:
        One `Glyph` for each index.

    Raises:
        ValueError: an unknown split.
    """
    faces = typefaces(split)
    return [_glyph(faces, row) for row in uniforms(seed, indices)]


def _glyph(faces: Typefaces, u: np.ndarray) -> Glyph:
    """The glyph of DRAWS uniform numbers; the position of a number decides what it draws."""
    typeface, character = int(u[0] * len(faces)), int(u[1] * len(CHARACTERS))
    dark, light = int(u[2] * len(DARK)), len(DARK) + int(u[3] * len(LIGHT))
    ink, ground = (dark, light) if u[4] < 0.5 else (light, dark)
    attributes = {
        "character": CHARACTERS[character],
        "weight": str(faces.weight[typeface]),
        "slant": str(faces.slant[typeface]),
        "category": str(faces.category[typeface]),
        "ink": list(COLOURS)[ink],
        "ground": list(COLOURS)[ground],
    }
    largest_scale = REACH_PIXELS / float(faces.reach[typeface, character])
    return Glyph(
        typeface=typeface,
        character=character,
        ink=ink,
        ground=ground,
        shift=(SHIFT_PIXELS * (2 * u[11] - 1), SHIFT_PIXELS * (2 * u[12] - 1)),
        scale=min(SCALE * 2.0 ** (LOG2_SCALE * (2 * u[13] - 1)), largest_scale),
        turn=np.deg2rad(TURN_DEGREES) * (2 * u[14] - 1),
        caption=compose_caption(_mentioned(attributes, u[5:11]), u[15:20]),
    )


def _mentioned(attributes: dict[str, str], u: np.ndarray) -> dict[str, str]:
    """The attributes that the caption mentions, with the probabilities of MENTIONED; u: one number for each."""
    draws = zip(attributes.items(), u, strict=True)
    return {name: value for (name, value), number in draws if number < MENTIONED[name]}


def _choose(options: Sequence[str], u: float) -> str:
    return options[int(u * len(options))]


def compose_caption(attributes: dict[str, str], u: Sequence[float]) -> str:
    """A caption that mentions exactly the given attributes; the inverse of `attributes.parse_caption`.

    Args:
        attributes: values of some of character, weight, slant, category, ink and ground; an empty value is unknown.
        u: five numbers in [0, 1) that choose the wording.

    Returns:
        For example "a bold serif capital A in dark red on cream"; "" for no attribute.
    """
    adjectives = [attributes.get(name, "") for name in ("weight", "slant", "category")]
    noun = _noun(attributes, any(adjectives), u)
    words = [word for word in (*adjectives, noun) if word]
    ink_first = "ink" in attributes and bool(words) and u[2] < 0.3
    if ink_first:
        words.insert(0, attributes["ink"])
    if noun and u[3] < 0.5:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    if "ink" in attributes and not ink_first:
        words += ["in", attributes["ink"]]
    if "ground" in attributes:
        words += [_choose(("on", "over"), u[4]), attributes["ground"]]
    return " ".join(words)


def _noun(attributes: dict[str, str], has_adjective: bool, u: Sequence[float]) -> str:
    """The character, or a word for it; "" where adjectives stand alone or nothing is mentioned."""
    if "character" in attributes:
        return _character(attributes["character"], u[0])
    if has_adjective:
        return _choose(("letter", "character", "glyph"), 2 * u[1]) if u[1] < 0.5 else ""
    return "glyph" if "ink" in attributes or "ground" in attributes else ""


def _character(character: str, u: float) -> str:
    """A character with its kind, e.g. "digit 7" or "small g"."""
    if character.isdigit():
        return f"{_choose(('digit', 'number', 'numeral'), u)} {character}"
    if character.isupper():
        return f"{_choose(('capital', 'uppercase', 'capital letter'), u)} {character}"
    return f"{_choose(('small', 'lowercase', 'small letter'), u)} {character}"


def paint(split: str, glyphs: Sequence[Glyph], device: torch.device | str = "cpu") -> Tensor:
    """Images of glyphs: their coverage is placed, then ink is mixed over ground.

    Args:
        split: the split that the glyphs were drawn from.
        glyphs: N descriptions.
        device: where they are painted; another one changes an image by rounding.

    Returns:
        (N, 3, 64, 64) float32 in [-1, 1], on the device.
    """
    typeface, character = (np.array([getattr(glyph, name) for glyph in glyphs]) for name in ("typeface", "character"))
    coverage = typefaces(split).coverage(typeface, character, device)
    grid = F.affine_grid(_placements(glyphs).to(device), [len(glyphs), 1, SIDE, SIDE], align_corners=False)
    mask = F.grid_sample(coverage[:, None], grid, align_corners=False).clamp(0, 1)  # (N, 1, 64, 64)
    ink, ground = (_colours(glyphs, name).to(device) for name in ("ink", "ground"))
    return ground + mask * (ink - ground)


def _colours(glyphs: Sequence[Glyph], name: str) -> Tensor:
    """Colours (N, 3, 1, 1) in [-1, 1] of the ink or of the ground; name: "ink" or "ground"."""
    return PALETTE[[getattr(glyph, name) for glyph in glyphs]][:, :, None, None]


def _placements(glyphs: Sequence[Glyph]) -> Tensor:
    """(N, 2, 3) maps from output to input coordinates: the inverse of scale, then turn, then shift."""
    turn = torch.tensor([glyph.turn for glyph in glyphs], dtype=torch.float32)
    scale = torch.tensor([glyph.scale for glyph in glyphs], dtype=torch.float32)
    shift = torch.tensor([glyph.shift for glyph in glyphs], dtype=torch.float32) * (2 / SIDE)
    cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)  # (N, 2, 2)
    return torch.cat([linear, -linear @ shift[:, :, None]], dim=-1)


def labels(split: str, glyphs: Sequence[Glyph]) -> Tensor:
    """Labels for classification: (N, 2) int64, the character (0..61) and the category (0..4, or -1 if unknown)."""
    category = typefaces(split).category
    index = {name: i for i, name in enumerate(CATEGORIES)}
    return torch.tensor([[glyph.character, index.get(str(category[glyph.typeface]), -1)] for glyph in glyphs])
