"""The archive of typefaces, its splits, and the draw, caption and image of a glyph."""

import itertools
from dataclasses import replace

import numpy as np
import torch

from diffgan.glyphs import recipe
from diffgan.glyphs.attributes import parse_caption
from diffgan.glyphs.typefaces import SPLITS, all_typefaces, split_of, typefaces


def test_archive_is_complete():
    faces = all_typefaces()
    assert faces.packed.shape == (1421, 62, 64, 32) and len(set(faces.family)) == 703
    assert faces.packed.any(axis=(2, 3)).all()  # no blank glyph


def test_splits_have_no_common_family_and_cover_all():
    families = {split: set(typefaces(split).family) for split in SPLITS}
    assert all(families[a].isdisjoint(families[b]) for a, b in itertools.combinations(SPLITS, 2))
    assert sum(len(typefaces(split)) for split in SPLITS) == 1421
    assert split_of("Noto Sans") == split_of("Noto Serif")


def test_coverage_unpacks_left_pixel_first():
    faces = typefaces("train")
    coverage = faces.coverage(np.array([3]), np.array([5]))[0].numpy()
    packed = faces.packed[3, 5]
    assert np.array_equal(np.round(coverage[:, 0::2] * 15), packed >> 4)
    assert np.array_equal(np.round(coverage[:, 1::2] * 15), packed & 15)


def test_image_is_a_function_of_split_seed_and_index():
    alone = recipe.describe("train", 0, [41])
    in_batch = recipe.describe("train", 0, range(40, 43))
    assert alone[0] == in_batch[1] != recipe.describe("train", 1, [41])[0]
    assert torch.equal(recipe.paint("train", alone)[0], recipe.paint("train", in_batch)[1])


def test_image_has_its_two_colours_one_dark_one_light():
    glyphs = recipe.describe("train", 2, range(64))
    images = recipe.paint("train", glyphs)
    for glyph, image in zip(glyphs, images, strict=True):
        assert torch.allclose(image[:, 0, 0], recipe.PALETTE[glyph.ground], atol=1e-6)
        assert (glyph.ink < len(recipe.DARK)) != (glyph.ground < len(recipe.DARK))
    assert images.abs().max() <= 1


def test_shift_moves_right_and_down_in_pixels():
    (glyph,) = recipe.describe("train", 2, [0])
    centred = replace(glyph, shift=(0.0, 0.0), scale=1.0, turn=0.0)
    base, moved = (recipe.paint("train", [g]) for g in (centred, replace(centred, shift=(3.0, 2.0))))
    assert torch.allclose(moved[..., 2:, 3:], base[..., :-2, :-3], atol=1e-5)


def test_captions_mention_some_attributes_only():
    glyphs = recipe.describe("train", 3, range(4000))
    captions = [glyph.caption for glyph in glyphs]
    with_character = [caption for caption in captions if parse_caption(caption).character]
    assert 0 < captions.count("") / len(captions) < 0.02 and 0.87 < len(with_character) / len(captions) < 0.93
    assert len({glyph.typeface for glyph in glyphs if "serif" in glyph.caption}) > 50


def test_wording_of_captions():
    attributes = {"weight": "bold", "category": "serif", "character": "A", "ink": "dark red", "ground": "cream"}
    assert recipe.compose_caption(attributes, [0, 0.9, 0.9, 0.0, 0.0]) == "a bold serif capital A in dark red on cream"
    assert recipe.compose_caption({"slant": "italic", "character": "x"}, [0, 0.9, 0.9, 0.0, 0]) == "an italic small x"
    assert recipe.compose_caption({"character": "7"}, [0, 0, 0, 0.9, 0]) == "digit 7"
    assert recipe.compose_caption({"category": "handwriting"}, [0, 0.9, 0, 0, 0]) == "handwriting"
    assert recipe.compose_caption({}, [0] * 5) == ""
