"""The frozen protocols: their digests, their captions, the real glyphs that satisfy a caption."""

import pytest

from diffgan.errors import UserError
from diffgan.evaluation.protocols.glyphs import glyph_protocol, satisfying
from diffgan.glyphs.attributes import parse_caption
from diffgan.glyphs.recipe import COLOURS, DARK
from diffgan.glyphs.typefaces import CHARACTERS, typefaces

DIGESTS = {"glyphs-500": "ffdea9a591851808", "glyphs-2k": "ea5b50d06d0197b1"}


@pytest.mark.parametrize("name", DIGESTS)
def test_protocols_are_frozen(name):
    """A change here makes metrics incomparable: give the protocol a new name instead."""
    assert glyph_protocol(name).digest == DIGESTS[name]


@pytest.mark.parametrize("name", DIGESTS)
def test_one_seed_a_prompt(name):
    protocol = glyph_protocol(name)
    varied = protocol.diversity_prompts * protocol.images_per_prompt
    assert len(protocol.prompts) == len(protocol.seeds) == protocol.images + varied
    assert protocol.prompts[protocol.images] == protocol.prompts[protocol.images + 1]
    assert len(protocol.population) == protocol.diversity_prompts


@pytest.mark.parametrize(
    "caption", ["a bold capital A in blue", "digit 7 on cream", "italic serif glyph in mint on brown", ""]
)
def test_real_glyphs_satisfy_their_caption(caption):
    wish, faces, names = parse_caption(caption), typefaces("train"), list(COLOURS)
    glyphs = satisfying("train", caption, 3, 60)
    for glyph in glyphs:
        shown = {
            "character": CHARACTERS[glyph.character],
            "ink": names[glyph.ink],
            "ground": names[glyph.ground],
            **{name: getattr(faces, name)[glyph.typeface] for name in ("weight", "slant", "category")},
        }
        assert all(getattr(wish, name) in (None, value) for name, value in shown.items())
        assert (glyph.ink < len(DARK)) != (glyph.ground < len(DARK))
    assert len({glyph.typeface for glyph in glyphs}) > 10
    assert len({glyph.shift for glyph in glyphs}) == 60


def test_names_are_checked():
    with pytest.raises(UserError, match="glyphs-500, glyphs-2k"):
        glyph_protocol("glyphs")


def test_a_caption_nobody_satisfies():
    with pytest.raises(UserError, match="no reference typeface"):
        satisfying("reference", "handwriting glyph", 0, 1)  # no such family there
