"""Colours of real pictures are read right; captions are read back as they were worded."""

import dataclasses

import pytest
import torch

from diffgan.glyphs import recipe
from diffgan.glyphs.attributes import Asked, asked, coverage, read_colours
from diffgan.glyphs.typefaces import CHARACTERS, typefaces


@pytest.fixture(scope="module")
def drawn():
    glyphs = recipe.describe("reference", 11, range(800))
    return glyphs, recipe.paint("reference", glyphs)


def test_colours_of_real_pictures(drawn):
    glyphs, pictures = drawn
    wanted = torch.tensor([[g.ink, g.ground] for g in glyphs])
    assert (read_colours(pictures) == wanted).float().mean() > 0.995
    noisy = pictures + 0.1 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    assert (read_colours(noisy) == wanted).float().mean() > 0.99


def test_ink_and_ground_are_one_dark_one_light():
    noise = 2 * torch.rand(50, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 1
    dark = read_colours(noise) < len(recipe.DARK)
    assert (dark.sum(1) == 1).all()


def test_coverage_forgets_colours(drawn):
    glyphs, pictures = drawn
    swapped = [dataclasses.replace(g, ink=g.ground, ground=g.ink) for g in glyphs]
    difference = (coverage(recipe.paint("reference", swapped)) - coverage(pictures)).abs()
    assert difference.mean() < 1e-4
    assert not coverage(torch.full((1, 3, 64, 64), 0.3)).any()


def test_captions_are_read_back(monkeypatch):
    said, phrase = [], recipe.phrase
    monkeypatch.setattr(recipe, "phrase", lambda words, u: (said.append(dict(words)), phrase(words, u))[1])
    glyphs = recipe.describe("train", 12, range(3000))
    for glyph, words in zip(glyphs, said, strict=True):
        assert asked(glyph.caption) == Asked(**{name: word for name, word in words.items() if word}), glyph.caption


def test_every_word_of_the_typefaces_is_known():
    faces = typefaces("train")
    for name in ("weight", "slant", "category"):
        for word in set(getattr(faces, name)) - {""}:
            assert getattr(asked(f"a {word} capital {CHARACTERS[0]}"), name) == word


def test_an_empty_caption_asks_for_nothing():
    assert asked("") == asked("a glyph") == Asked()
