"""How a captioned picture is made of a glyph: what is drawn, how it is said, how it is painted.

Every picture is a function of (split, seed, index): nothing here keeps state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffgan.glyphs.typefaces import CATEGORIES, CHARACTERS, SIDE, typefaces
from diffgan.images import from_uint8

# Dark and light names: ink and ground are always one of each, so the shape stands out whatever the colours.
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

SCALE = 1.3  # of the archive's glyphs, whose capital H is 34 pixels high
LOG2_SCALE = 0.12
REACH_PIXELS = 29.0  # wide glyphs are scaled less, so that they stay in the picture
SHIFT_PIXELS = 3.0
TURN_DEGREES = 6.0
MENTIONED = {"character": 0.9, "weight": 0.5, "slant": 0.5, "category": 0.6, "ink": 0.65, "ground": 0.65}
DRAWS = 24


@dataclass(frozen=True)
class Glyph:
    """One picture before it is painted: indices into the split's typefaces, CHARACTERS and COLOURS, and its place."""

    typeface: int
    character: int
    ink: int
    ground: int
    shift: tuple[float, float]  # pixels right and down
    scale: float
    turn: float  # radians, counter-clockwise
    caption: str


def uniforms(seed: int, indices: Sequence[int]) -> np.ndarray:
    """(N, DRAWS) numbers in [0, 1), row i a function of (seed, indices[i]) alone."""
    return np.stack([np.random.Generator(np.random.Philox(key=[seed, index])).random(DRAWS) for index in indices])


def describe(split: str, seed: int, indices: Sequence[int]) -> list[Glyph]:
    """Draw the pictures of a split that (seed, index) stands for."""
    faces = typefaces(split)
    return [_glyph(faces, row) for row in uniforms(seed, indices)]


def _glyph(faces, u: np.ndarray) -> Glyph:
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
    fitting = REACH_PIXELS / float(faces.reach[typeface, character])
    said = {name: value for (name, value), v in zip(attributes.items(), u[5:11], strict=True) if v < MENTIONED[name]}
    return Glyph(
        typeface=typeface,
        character=character,
        ink=ink,
        ground=ground,
        shift=(SHIFT_PIXELS * (2 * u[11] - 1), SHIFT_PIXELS * (2 * u[12] - 1)),
        scale=min(SCALE * 2.0 ** (LOG2_SCALE * (2 * u[13] - 1)), fitting),
        turn=np.deg2rad(TURN_DEGREES) * (2 * u[14] - 1),
        caption=phrase(said, u[15:20]),
    )


def _pick(options: Sequence[str], u: float) -> str:
    return options[int(u * len(options))]


def phrase(said: dict[str, str], u: Sequence[float]) -> str:
    """Word a caption that mentions exactly `said`; u: five numbers in [0, 1) choose among the wordings."""
    adjectives = [said.get("weight", ""), said.get("slant", ""), said.get("category", "")]
    noun = _character(said["character"], u[0]) if "character" in said else ""
    if not noun and any(adjectives) and u[1] < 0.5:
        noun = _pick(("letter", "character", "glyph"), 2 * u[1])
    if not noun and not any(adjectives) and ("ink" in said or "ground" in said):
        noun = "glyph"
    words = [word for word in (*adjectives, noun) if word]
    ink_first = "ink" in said and bool(words) and u[2] < 0.3
    if ink_first:
        words.insert(0, said["ink"])
    if noun and u[3] < 0.5:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    if "ink" in said and not ink_first:
        words += ["in", said["ink"]]
    if "ground" in said:
        words += [_pick(("on", "over"), u[4]), said["ground"]]
    return " ".join(words)


def _character(character: str, u: float) -> str:
    if character.isdigit():
        return f"{_pick(('digit', 'number', 'numeral'), u)} {character}"
    if character.isupper():
        return f"{_pick(('capital', 'uppercase', 'capital letter'), u)} {character}"
    return f"{_pick(('small', 'lowercase', 'small letter'), u)} {character}"


def paint(split: str, glyphs: Sequence[Glyph]) -> Tensor:
    """Pictures (N, 3, 64, 64) float32 in [-1, 1]: coverage placed, then ink mixed over ground."""
    coverage = typefaces(split).coverage(
        np.array([g.typeface for g in glyphs]), np.array([g.character for g in glyphs])
    )
    grid = F.affine_grid(_placements(glyphs), [len(glyphs), 1, SIDE, SIDE], align_corners=False)
    mask = F.grid_sample(torch.from_numpy(coverage)[:, None], grid, align_corners=False).clamp(0, 1)  # (N, 1, 64, 64)
    ink = PALETTE[[g.ink for g in glyphs]][:, :, None, None]
    ground = PALETTE[[g.ground for g in glyphs]][:, :, None, None]
    return ground + mask * (ink - ground)


def _placements(glyphs: Sequence[Glyph]) -> Tensor:
    """(N, 2, 3) maps from output to input coordinates: the inverse of scale, then turn, then shift."""
    turn = torch.tensor([g.turn for g in glyphs], dtype=torch.float32)
    scale = torch.tensor([g.scale for g in glyphs], dtype=torch.float32)
    shift = torch.tensor([g.shift for g in glyphs], dtype=torch.float32) * (2 / SIDE)
    cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)  # (N, 2, 2)
    return torch.cat([linear, -linear @ shift[:, :, None]], dim=-1)


def labels(split: str, glyphs: Sequence[Glyph]) -> Tensor:
    """(N, 2) int64: the character (0..61) and the typeface's category (0..4, or -1 where it is unknown)."""
    category = typefaces(split).category
    index = {name: i for i, name in enumerate(CATEGORIES)}
    return torch.tensor([[g.character, index.get(str(category[g.typeface]), -1)] for g in glyphs])
