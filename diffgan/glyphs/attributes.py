"""Attributes of glyph images (coverage, colours) and of captions, read without a network."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from diffgan.glyphs.recipe import COLOURS, DARK, PALETTE
from diffgan.glyphs.typefaces import CATEGORIES

FRAME_PIXELS = 3  # width of the frame from which the ground is read
CORE_PIXELS = 40  # the ink is read from this many pixels, those farthest from the ground (1% of an image)
MIN_CORE_COVERAGE = 0.5  # least coverage that the core of a stroke is expected to have
MIN_CONTRAST = 0.2  # least distance of ink and ground that distances are divided by


def ground_colour(images: Tensor) -> Tensor:
    """Median colour of the frame of each image: (N, 3, H, W) in [-1, 1] -> (N, 3)."""
    top, bottom = images[..., :FRAME_PIXELS, :], images[..., -FRAME_PIXELS:, :]
    between = images[..., FRAME_PIXELS:-FRAME_PIXELS, :]
    left, right = between[..., :FRAME_PIXELS], between[..., -FRAME_PIXELS:]
    frame = torch.cat([side.flatten(2) for side in (top, bottom, left, right)], dim=-1)  # (N, 3, pixels)
    return frame.median(-1).values


def _core_colour(images: Tensor, ground: Tensor) -> tuple[Tensor, Tensor]:
    """Colour of the strokes' core and distance of every pixel from the ground.

    Args:
        images: (N, 3, H, W).
        ground: (N, 3).

    Returns:
        (N, 3) mean colour of the CORE_PIXELS pixels farthest from the ground, and (N, H, W) distances.
    """
    distance = (images - ground[:, :, None, None]).norm(dim=1)
    farthest = distance.flatten(1).topk(CORE_PIXELS).indices  # (N, CORE_PIXELS)
    core = images.flatten(2).gather(2, farthest[:, None].expand(-1, 3, -1)).mean(-1)
    return core, distance


def coverage(images: Tensor) -> Tensor:
    """Coverage of every pixel by ink: 0 for the colour of the ground, 1 for that of the ink.

    It does not depend on the colours: dark on light and light on dark give the same coverage. An image of one colour
    has coverage 0.

    Args:
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        (N, 1, H, W) in [0, 1].
    """
    ground = ground_colour(images)
    core, distance = _core_colour(images, ground)
    contrast = (core - ground).norm(dim=1).clamp_min(MIN_CONTRAST)
    return (distance / contrast[:, None, None]).clamp(0, 1)[:, None]


def read_colours(images: Tensor) -> Tensor:
    """Colours of ink and ground.

    The ground is the palette's colour nearest to the median of the frame. The ink is of the other kind (dark or light):
    the colour for which the core of the strokes is nearest to the line from ground to ink, beyond MIN_CORE_COVERAGE of
    its length. Thin strokes, which nowhere have the full colour of the ink, are thus read too.

    Args:
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        (N, 2) int64, indices of ink and ground into COLOURS.
    """
    frame_colour = ground_colour(images)
    core, _ = _core_colour(images, frame_colour)
    palette = PALETTE.to(images)
    ground = torch.cdist(frame_colour, palette).argmin(1)
    error = _ink_errors(core, ground, palette)
    is_dark = torch.arange(len(palette), device=images.device) < len(DARK)
    error = error.masked_fill(is_dark == is_dark[ground][:, None], torch.inf)
    return torch.stack([error.argmin(1), ground], dim=1)


def _ink_errors(core: Tensor, ground: Tensor, palette: Tensor) -> Tensor:
    """Distances (N, 12) of the cores (N, 3) from the lines from the grounds (N,) to each colour of the palette."""
    line = palette - palette[ground][:, None]  # (N, 12, 3)
    offset = (core - palette[ground])[:, None]
    position = (offset * line).sum(-1) / line.square().sum(-1).clamp_min(1e-6)
    position = position.clamp(MIN_CORE_COVERAGE, 1)
    return (offset - position[..., None] * line).norm(dim=-1)


@dataclass(frozen=True)
class CaptionAttributes:
    """Attributes that a caption mentions, in the words of the recipe; None for those it does not mention."""

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


def parse_caption(caption: str) -> CaptionAttributes:
    """The attributes that a caption in the recipe's wording mentions: the inverse of `recipe.compose_caption`."""
    matches = {name: re.search(pattern, caption) for name, pattern in _WORDING.items()}
    return CaptionAttributes(**{name: match[1] for name, match in matches.items() if match})
