"""Protocols of glyphs: captions, noise seeds, the real images they are compared with, and the metrics."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, islice

import numpy as np

from diffgan.errors import UserError
from diffgan.evaluation.grain import GRAIN, PLAIN
from diffgan.evaluation.metrics.base import ImageMetric
from diffgan.evaluation.metrics.distances import FrechetDistance, KernelDistance
from diffgan.evaluation.metrics.diversity import Diversity
from diffgan.evaluation.metrics.glyph_alignment import GlyphAlignment
from diffgan.evaluation.metrics.precision_recall import PrecisionRecall
from diffgan.evaluation.metrics.teacher import TeacherDistance, TeacherFrechetDistance
from diffgan.glyphs import recipe
from diffgan.glyphs.attributes import CaptionAttributes, parse_caption
from diffgan.glyphs.reader import GlyphReader
from diffgan.glyphs.recipe import COLOURS, DARK, LIGHT, Glyph
from diffgan.glyphs.typefaces import CHARACTERS, typefaces

SPLIT = "reference"  # captions and real images: families that no training sees
POPULATION = "train"  # real images of one caption, for diversity: what a teacher can have learnt
IMAGE_SEED, POPULATION_SEED, NOISE_SEED = 7001, 7002, 3_000_000_000
KID = {"subsets": 50, "subset_size": 250}
MIN_TYPEFACES = 16  # a prompt of the diversity metric is satisfied by at least so many typefaces of POPULATION


@dataclass(frozen=True)
class GlyphProtocol:
    """Evaluation on glyphs.

    images: captions of the reference families; one image is generated of each, and its own image is in the real set.
    diversity_prompts, images_per_prompt: prompts of the diversity metric and images generated of each.
    """

    name: str
    images: int
    diversity_prompts: int
    images_per_prompt: int

    @cached_property
    def reference(self) -> list[Glyph]:
        """The real set: `images` glyphs with the captions."""
        return recipe.describe(SPLIT, IMAGE_SEED, range(self.images))

    @cached_property
    def floor(self) -> list[Glyph]:
        """As many other glyphs of the same families: their distance from `reference` is that of a perfect model."""
        return recipe.describe(SPLIT, IMAGE_SEED, range(self.images, 2 * self.images))

    @cached_property
    def population(self) -> list[list[Glyph]]:
        """For each prompt of the diversity metric `images_per_prompt` real glyphs that satisfy it."""
        captions = (glyph.caption for glyph in self.floor)
        wide = (c for c in captions if len(matching_typefaces(POPULATION, parse_caption(c))) >= MIN_TYPEFACES)
        return [
            satisfying(POPULATION, prompt, POPULATION_SEED + row, self.images_per_prompt)
            for row, prompt in enumerate(islice(wide, self.diversity_prompts))
        ]

    @property
    def prompts(self) -> list[str]:
        """Every prompt that is generated: those of `reference`, then each of `population` `images_per_prompt` times."""
        return [glyph.caption for glyph in chain(self.reference, *self.population)]

    @property
    def seeds(self) -> range:
        """The noise seed of every prompt; pairs and their validation use other ones."""
        return range(NOISE_SEED, NOISE_SEED + self.images + self.diversity_prompts * self.images_per_prompt)

    def metrics(self, extractor: str = "efficientnet", reader: GlyphReader | None = None) -> list[ImageMetric]:
        """The metrics in the order of the tables' columns.

        Args:
            extractor: name of the features of the distances.
            reader: names the character of an image; by default the one that ships with the package.
        """
        matched, varied = slice(self.images), slice(self.images, None)
        return [
            FrechetDistance(extractor, PLAIN, matched, floor="floor"),
            KernelDistance(extractor, PLAIN, matched, floor="floor", **KID),
            FrechetDistance(extractor, GRAIN, matched, floor="floor"),
            KernelDistance(extractor, GRAIN, matched, floor="floor", **KID),
            PrecisionRecall(extractor, GRAIN, matched, floor="floor"),
            GlyphAlignment(reader, matched),
            Diversity(PLAIN, varied),
            Diversity(GRAIN, varied),
        ]

    def teacher_metrics(self, extractor: str = "efficientnet") -> list[ImageMetric]:
        """The metrics that compare a student's images with its teacher's of the same captions and noises."""
        matched = slice(self.images)
        return [
            TeacherFrechetDistance(extractor, PLAIN, matched),
            TeacherDistance(extractor, PLAIN, matched),
            TeacherFrechetDistance(extractor, GRAIN, matched),
            TeacherDistance(extractor, GRAIN, matched),
        ]

    def reconstruction_metrics(
        self, extractor: str = "efficientnet", reader: GlyphReader | None = None
    ) -> list[ImageMetric]:
        """The metrics of the reference's images after the autoencoder; they are compared with those of `floor`."""
        return [
            GlyphAlignment(reader, reference=None),
            FrechetDistance(extractor, PLAIN, reference="floor"),
            KernelDistance(extractor, PLAIN, reference="floor", **KID),
            FrechetDistance(extractor, GRAIN, reference="floor"),
            KernelDistance(extractor, GRAIN, reference="floor", **KID),
        ]

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over captions, images, seeds, the palette and the shapes of the typefaces."""
        fields = [self.name, self.images, self.diversity_prompts, self.images_per_prompt, NOISE_SEED, COLOURS]
        lists = [list(map(_record, glyphs)) for glyphs in (self.reference, self.floor, *self.population)]
        state = hashlib.blake2b(json.dumps([fields, lists]).encode(), digest_size=8)
        for split in (SPLIT, POPULATION):
            state.update(np.ascontiguousarray(typefaces(split).packed))
        return state.hexdigest()


def _record(glyph: Glyph) -> list:
    return [round(value, 6) if isinstance(value, float) else value for value in asdict(glyph).values()]


def matching_typefaces(split: str, wish: CaptionAttributes) -> np.ndarray:
    """Indices of the split's typefaces that have the weight, slant and category asked for."""
    faces = typefaces(split)
    keep = np.ones(len(faces), dtype=bool)
    for attribute in ("weight", "slant", "category"):
        if getattr(wish, attribute) is not None:
            keep &= getattr(faces, attribute) == getattr(wish, attribute)
    return keep.nonzero()[0]


def satisfying(split: str, caption: str, seed: int, count: int) -> list[Glyph]:
    """`count` glyphs of a split as `caption` asks for; what it leaves open (typeface, colours, place) is drawn afresh.

    Raises:
        UserError: no typeface of the split has what the caption asks for.
    """
    wish = parse_caption(caption)
    faces = matching_typefaces(split, wish)
    if not len(faces):
        raise UserError(f"no {split} typeface satisfies {caption!r}")
    glyphs = recipe.describe(split, seed, range(count))
    draws = recipe.uniforms(seed, range(count, 2 * count))
    return [_granted(glyph, wish, faces, u, caption) for glyph, u in zip(glyphs, draws, strict=True)]


def _granted(glyph: Glyph, wish: CaptionAttributes, faces: np.ndarray, u: np.ndarray, caption: str) -> Glyph:
    typeface = int(faces[int(u[0] * len(faces))])
    character = glyph.character if wish.character is None else CHARACTERS.index(wish.character)
    dark, light = int(u[1] * len(DARK)), len(DARK) + int(u[2] * len(LIGHT))
    ink, ground = _granted_colours(wish, dark, light, u[3])
    return replace(glyph, typeface=typeface, character=character, ink=ink, ground=ground, caption=caption)


def _granted_colours(wish: CaptionAttributes, dark: int, light: int, u: float) -> tuple[int, int]:
    """Ink and ground, one dark and one light, of which those named are as named."""
    names = list(COLOURS)
    ink, ground = (None if name is None else names.index(name) for name in (wish.ink, wish.ground))
    if ink is None and ground is None:
        return (dark, light) if u < 0.5 else (light, dark)
    if ink is None:
        return (light if ground < len(DARK) else dark), ground
    if ground is None:
        return ink, (light if ink < len(DARK) else dark)
    return ink, ground


GLYPH_PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        GlyphProtocol("glyphs-500", images=500, diversity_prompts=20, images_per_prompt=6),
        GlyphProtocol("glyphs-2k", images=2000, diversity_prompts=64, images_per_prompt=8),
    )
}


def glyph_protocol(name: str) -> GlyphProtocol:
    """A protocol by its name; another name raises UserError with those there are."""
    if name not in GLYPH_PROTOCOLS:
        raise UserError(f"protocol {name!r} is none of {', '.join(GLYPH_PROTOCOLS)}")
    return GLYPH_PROTOCOLS[name]
