"""The reader of the package on real glyphs of held-out families; its training stage; its file."""

import pytest
import torch
from safetensors.torch import save_file

from diffgan.errors import UserError
from diffgan.glyphs import recipe
from diffgan.glyphs.reader import GlyphReader, ReaderTraining, load_reader
from diffgan.glyphs.typefaces import typefaces
from diffgan.storage.embedded import embedded


def test_real_glyphs_of_other_families():
    """Measured on 4,000: 0.871, without typefaces of the category display 0.956."""
    glyphs = recipe.describe("reference", 21, range(500))
    characters = torch.tensor([glyph.character for glyph in glyphs])
    correct = load_reader().read(recipe.paint("reference", glyphs)) == characters
    categories = typefaces("reference").category[[glyph.typeface for glyph in glyphs]]
    assert correct.float().mean() > 0.83
    assert correct[torch.from_numpy(categories != "display")].float().mean() > 0.92


def test_colours_do_not_matter():
    reader, glyph = load_reader(), recipe.describe("reference", 22, [0])[0]
    painted = [recipe.paint("reference", [type(glyph)(**{**vars(glyph), "ink": i, "ground": g})])
               for i, g in ((0, 6), (6, 0), (2, 8), (9, 4))]  # fmt: skip
    assert len(set(reader.read(torch.cat(painted)).tolist())) == 1


def test_the_file_of_the_package_is_small():
    assert embedded("reader.safetensors").stat().st_size <= 1_500_000


def test_weights_survive_the_file(tmp_path):
    reader = GlyphReader().eval()
    reader.save(tmp_path / "reader.safetensors")
    images = recipe.paint("train", recipe.describe("train", 0, range(4)))
    assert torch.allclose(load_reader(tmp_path / "reader.safetensors")(images), reader(images), atol=2e-2)
    assert [path.name for path in tmp_path.iterdir()] == ["reader.safetensors"]


def test_other_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no safetensors")
    for name in ("other", "broken", "missing"):
        with pytest.raises(UserError, match="reader"):
            load_reader(tmp_path / f"{name}.safetensors")


def test_a_training_step_learns(tmp_path):
    torch.manual_seed(0)
    stage = ReaderTraining(tmp_path / "r.safetensors", lambda p: torch.optim.AdamW(p, lr=3e-3), steps=10)
    glyphs = recipe.describe("train", 0, range(16))
    images, characters = recipe.paint("train", glyphs), torch.tensor([glyph.character for glyph in glyphs])
    optimizer = stage.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(stage.reader(images), characters)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
