"""Attributes read from images of real glyphs and from captions."""

import dataclasses

import numpy as np
import pytest
import torch

from diffgan.glyphs import recipe
from diffgan.glyphs.attributes import CaptionAttributes, coverage, parse_caption, read_colours
from diffgan.glyphs.typefaces import CATEGORIES, CHARACTERS, typefaces


@pytest.fixture(scope="module")
def drawn():
    glyphs = recipe.describe("reference", 11, range(800))
    return glyphs, recipe.paint("reference", glyphs)


def test_colours_of_real_images(drawn):
    glyphs, images = drawn
    colours = torch.tensor([[glyph.ink, glyph.ground] for glyph in glyphs])
    assert (read_colours(images) == colours).float().mean() > 0.995
    noisy = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert (read_colours(noisy) == colours).float().mean() > 0.99


def test_ink_and_ground_are_one_dark_one_light():
    noise = 2 * torch.rand(50, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 1
    dark = read_colours(noise) < len(recipe.DARK)
    assert (dark.sum(1) == 1).all()


def test_coverage_does_not_depend_on_colours(drawn):
    glyphs, images = drawn
    swapped = [dataclasses.replace(glyph, ink=glyph.ground, ground=glyph.ink) for glyph in glyphs]
    difference = (coverage(recipe.paint("reference", swapped)) - coverage(images)).abs()
    assert difference.mean() < 1e-4
    assert not coverage(torch.full((1, 3, 64, 64), 0.3)).any()


def test_a_composed_caption_is_parsed_to_its_attributes():
    rng = np.random.default_rng(0)
    values = {
        "character": CHARACTERS,
        "weight": ("light", "regular", "bold"),
        "slant": ("upright", "italic"),
        "category": CATEGORIES,
        "ink": tuple(recipe.COLOURS),
        "ground": tuple(recipe.COLOURS),
    }
    for _ in range(3000):
        attributes = {name: str(rng.choice(list(options))) for name, options in values.items() if rng.random() < 0.6}
        caption = recipe.compose_caption(attributes, rng.random(5))
        assert parse_caption(caption) == CaptionAttributes(**attributes), caption


def test_drawn_captions_mention_attributes_of_their_glyph():
    names, faces = list(recipe.COLOURS), typefaces("train")
    for glyph in recipe.describe("train", 12, range(3000)):
        attributes = {
            "character": CHARACTERS[glyph.character],
            "ink": names[glyph.ink],
            "ground": names[glyph.ground],
            **{name: getattr(faces, name)[glyph.typeface] for name in ("weight", "slant", "category")},
        }
        mentioned = dataclasses.asdict(parse_caption(glyph.caption))
        assert all(value in (None, attributes[name]) for name, value in mentioned.items()), glyph.caption


def test_every_word_of_the_typefaces_is_parsed():
    faces = typefaces("train")
    for name in ("weight", "slant", "category"):
        for word in set(getattr(faces, name)) - {""}:
            assert getattr(parse_caption(f"a {word} capital {CHARACTERS[0]}"), name) == word


def test_an_empty_caption_mentions_nothing():
    assert parse_caption("") == parse_caption("a glyph") == CaptionAttributes()
