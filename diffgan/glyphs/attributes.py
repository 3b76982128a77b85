"""What a glyph picture shows (coverage, colours) and what a caption asks for, read without a network."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from diffgan.glyphs.recipe import COLOURS, DARK, PALETTE
from diffgan.glyphs.typefaces import CATEGORIES

FRAME_PIXELS = 3  # ground is read on a frame this wide
CORE_PIXELS = 40  # ink is read on this many pixels, those farthest from the ground (1% of a picture)
THINNEST = 0.5  # the least coverage that the core of a stroke is expected to have


def ground_colour(images: Tensor) -> Tensor:
    """Median colour of the pictures' frames: (N, 3, H, W) in [-1, 1] -> (N, 3)."""
    frame = torch.ones(images.shape[-2:], dtype=torch.bool, device=images.device)
    frame[FRAME_PIXELS:-FRAME_PIXELS, FRAME_PIXELS:-FRAME_PIXELS] = False
    return images[:, :, frame].median(-1).values


def _core(images: Tensor, ground: Tensor) -> tuple[Tensor, Tensor]:
    """Mean colour (N, 3) of the CORE_PIXELS farthest from `ground`, and every pixel's distance from it (N, H, W)."""
    distance = (images - ground[:, :, None, None]).norm(dim=1)
    farthest = distance.flatten(1).topk(CORE_PIXELS).indices  # (N, CORE_PIXELS)
    core = images.flatten(2).gather(2, farthest[:, None].expand(-1, 3, -1)).mean(-1)
    return core, distance


def coverage(images: Tensor) -> Tensor:
    """How far every pixel is from the ground towards the ink: (N, 3, H, W) in [-1, 1] -> (N, 1, H, W) in [0, 1].

    Free of colours and of their order: dark on light and light on dark look alike. A picture of one colour gives 0.
    """
    ground = ground_colour(images)
    core, distance = _core(images, ground)
    contrast = (core - ground).norm(dim=1).clamp_min(0.2)
    return (distance / contrast[:, None, None]).clamp(0, 1)[:, None]


def read_colours(images: Tensor) -> Tensor:
    """Ink and ground as indices into COLOURS: (N, 3, H, W) in [-1, 1] -> (N, 2) int64.

    The ground is the palette's colour nearest to the frame's median. The ink is of the other kind (dark, light): the
    one for which the core of the strokes lies nearest to the line from ground to ink, beyond THINNEST of the way, so
    that thin strokes, nowhere of full ink, are read too.
    """
    seen = ground_colour(images)
    core, _ = _core(images, seen)
    palette = PALETTE.to(images)
    ground = torch.cdist(seen, palette).argmin(1)
    way = palette - palette[ground][:, None]  # (N, 12, 3) from ground to every possible ink
    offset = (core - palette[ground])[:, None]
    share = ((offset * way).sum(-1) / way.square().sum(-1).clamp_min(1e-6)).clamp(THINNEST, 1)
    error = (offset - share[..., None] * way).norm(dim=-1)  # (N, 12)
    dark = torch.arange(len(palette), device=images.device) < len(DARK)
    error = error.masked_fill(dark == dark[ground][:, None], torch.inf)
    return torch.stack([error.argmin(1), ground], dim=1)


@dataclass(frozen=True)
class Asked:
    """What a caption mentions; None where it is silent. Words are those of the recipe."""

    character: str | None = None
    weight: str | None = None
    slant: str | None = None
    category: str | None = None
    ink: str | None = None
    ground: str | None = None


_COLOUR = f"({'|'.join(COLOURS)})"
_WORDING = {
    "character": r"\b(?:(?:capital|small)(?: letter)?|uppercase|lowercase|digit|number|numeral) (\S)(?!\S)",
    "weight": r"\b(light|regular|bold)\b",
    "slant": r"\b(upright|italic)\b",
    "category": rf"\b({'|'.join(sorted(CATEGORIES, key=len, reverse=True))})\b",
    "ink": rf"(?:^| in |^an? ){_COLOUR}\b",
    "ground": rf" (?:on|over) {_COLOUR}$",
}


def asked(caption: str) -> Asked:
    """What a caption in the recipe's wording mentions: the inverse of `recipe.phrase`."""
    found = {name: re.search(pattern, caption) for name, pattern in _WORDING.items()}
    return Asked(**{name: match[1] for name, match in found.items() if match})
