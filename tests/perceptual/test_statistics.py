"""Whether latents are those that the weights were made for: one warning; other shapes are refused."""

import re
import warnings

import pytest
import torch

from datamodules.glyphs import GlyphDataset
from diffgan import ELatentLPIPS, LatentLPIPS
from diffgan.errors import UserError
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.statistics import LatentStatistics, RunningStatistics
from diffgan.perceptual.weights import PerceptualWeights, load_weights, save_weights
from diffgan.storage.digests import digest
from diffgan.storage.embedded import embedded
from diffgan.teachers.autoencoders import Encoder

SD15 = LatentSpace(4, 8, 0.18215)


@pytest.fixture(scope="module")
def glyphs():
    """Latents of real glyphs, (128, 3, 16, 16)."""
    return Encoder("glyphs")(GlyphDataset("train", 1000, 1).__getitems__(range(128)).image)


def warned(call):
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(str(warning.message), warning.filename) for warning in caught]


def test_by_hand():
    values = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(2, 1, 1, 2)
    latents = torch.cat([values, -2 * values], dim=1)  # (2, 2, 1, 2)
    statistics = LatentStatistics.of(latents)
    assert statistics.mean == (4.0, -8.0)
    assert statistics.std == pytest.approx((5**0.5, 2 * 5**0.5))
    running = RunningStatistics()
    for latent in latents.bfloat16().split(1):
        running.update(latent)
    assert running.value() == statistics
    assert LatentStatistics.read(statistics.text(), 2, "file") == statistics


def test_the_shipped_ones_are_of_real_glyphs(glyphs):
    shipped, found = load_weights("glyphs").statistics, LatentStatistics.of(glyphs)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(shipped), rtol=0.1, atol=0.1)
    assert digest(embedded("latent_lpips.safetensors")) == "ce2adc3bef3742fbe8038aa77bcccd2b"  # as records name it


@pytest.mark.parametrize("kind", [LatentLPIPS, ELatentLPIPS])
@pytest.mark.parametrize("images", [1, 4, 64])
def test_real_latents_give_no_warning(kind, images, glyphs):
    for batch in glyphs.split(images)[:8]:
        assert warned(lambda latents=batch: kind("glyphs")(latents, latents)) == []


@pytest.mark.parametrize("kind", [LatentLPIPS, ELatentLPIPS])
@pytest.mark.parametrize("change", [lambda x: x / 0.18215, lambda x: x * 0.18215, lambda x: x + 3])
def test_other_latents_give_one_warning_that_names_the_caller(kind, change, glyphs):
    loss, latents = kind("glyphs"), change(glyphs[:16])
    [(message, file)] = warned(lambda: [loss(latents, latents) for _ in range(2)])
    assert re.match(rf"{kind.__name__}: these latents have mean .*, std .*, those of glyphs have mean -0.01 ", message)
    assert "(latent - 0) * 1" in message and file == __file__
    assert len(warned(lambda: kind("glyphs")(latents, latents))) == 1


def test_weights_without_statistics_give_no_warning(tmp_path):
    save_weights(tmp_path / "old.safetensors", PerceptualWeights(LatentVGG16(4, 0.125), SD15))
    loss = LatentLPIPS(tmp_path / "old.safetensors")
    assert loss.statistics is None
    assert warned(lambda: loss(*torch.randn(2, 1, 4, 16, 16) * 9)) == []


def test_statistics_are_kept_by_the_file(tmp_path):
    statistics = LatentStatistics((0.1, -0.2, 0.3, 0.0), (1.0, 2.0, 0.5, 1.5))
    save_weights(tmp_path / "w.safetensors", PerceptualWeights(LatentVGG16(4, 0.125), SD15, statistics=statistics))
    loaded = LatentLPIPS(tmp_path / "w.safetensors").as_weights()
    assert loaded.statistics == statistics
    [(message, _)] = warned(lambda: LatentLPIPS(tmp_path / "w.safetensors")(*torch.randn(2, 8, 4, 16, 16) * 9))
    assert "(latent - 0) * 0.18215" in message


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"mean": [0, 0]}', '{"mean": [0], "std": [1]}', '{"mean": [0, 0], "std": [0, 1]}']
)
def test_broken_statistics_are_refused(text):
    with pytest.raises(UserError, match=r"w\.safetensors: statistics: expected"):
        LatentStatistics.read(text, 2, "w.safetensors")


@pytest.mark.parametrize("kind", [LatentLPIPS, ELatentLPIPS])
def test_other_channels_are_refused(kind):
    loss, own, other = kind("glyphs"), torch.randn(2, 3, 16, 16), torch.randn(2, 4, 16, 16)
    for pair in ((other, other), (own, other), (other, own), (own[0], own[0])):
        with pytest.raises(UserError, match=r"glyphs: weights of latents \(N, 3, H, W\), but these latents are \("):
            loss(*pair)
