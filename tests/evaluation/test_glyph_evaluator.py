"""Evaluation of glyphs on real images and on noise; the cache; the callback."""

import math
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from callbacks.glyph_evaluation import GlyphEvaluation
from diffgan.errors import UserError
from diffgan.evaluation.glyph_evaluator import GlyphEvaluator
from diffgan.evaluation.grain import GRAIN, PLAIN, with_grain
from diffgan.evaluation.metrics.diversity import mean_pairwise_distance, share_within_prompts
from diffgan.evaluation.protocols import glyphs as protocols
from diffgan.evaluation.protocols.glyphs import GlyphProtocol
from diffgan.glyphs import recipe
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher
from tests.devices import NothingToMove

LATENT = (4, 16, 16)


class Averages(nn.Module):
    """A cheap extractor: the image at 8x8."""

    name, identity = "averages", "averages 8"

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)


class _Unused(Averages):
    def forward(self, images):
        raise AssertionError("the features were computed again")


@pytest.fixture(scope="module")
def protocol() -> GlyphProtocol:
    return GlyphProtocol("tiny", images=100, diversity_prompts=5, images_per_prompt=4)


def _real_images(protocol):
    """A generator that cheats: images of the floor, then of the population, in the order of the prompts."""
    others = [glyph for glyphs in protocol.population for glyph in glyphs]
    queue = list(torch.cat([recipe.paint("reference", protocol.floor), recipe.paint("train", others)]))
    return lambda noise, prompts, seeds: torch.stack([queue.pop(0) for _ in prompts])


def _reference_images(protocol):
    queue = list(recipe.paint("reference", protocol.reference)) + [torch.zeros(3, 64, 64)] * 20
    return lambda noise, prompts, seeds: torch.stack([queue.pop(0) for _ in prompts])


def _noise(noise, prompts, seeds):
    return nn.functional.interpolate(noise[:, :3], size=64)


def test_real_images_against_noise(protocol):
    evaluator = GlyphEvaluator(protocol)
    real = evaluator.evaluate(_real_images(protocol), LATENT)
    noise = evaluator.evaluate(_noise, LATENT)
    assert real["fd_efficientnet"] == pytest.approx(real["fd_efficientnet_floor"], rel=1e-3)
    assert real["diversity_ratio"] == pytest.approx(1, abs=1e-3)
    assert noise["fd_efficientnet"] > 2 * real["fd_efficientnet"]
    assert noise["kid_efficientnet"] > 10 * abs(real["kid_efficientnet"])
    assert noise["reading"] < 0.1 and noise["colour"] < 0.4


def test_the_reference_scores_as_real_images(protocol, tmp_path):
    evaluator = GlyphEvaluator(protocol, Averages(), cache=tmp_path)
    metrics = evaluator.evaluate(_reference_images(protocol), LATENT)
    assert metrics["reading"] == metrics["reading_real"] > 0.75
    assert metrics["colour"] == metrics["colour_real"] > 0.98
    assert metrics["fd_averages"] == pytest.approx(0, abs=1e-6)
    assert metrics["diversity_ratio"] == 0
    assert metrics["images"] == 120 and metrics["protocol"] == "tiny"
    again = GlyphEvaluator(protocol, _Unused(), cache=tmp_path).real_images()  # the cache is enough
    for view in (PLAIN, GRAIN):
        assert torch.equal(again.features("floor", view), evaluator.real_images().features("floor", view))
    assert len(list(tmp_path.glob("real-tiny-*.safetensors"))) == 2


def test_grain_hides_unevenness_that_nobody_sees(protocol):
    """Real images with an unevenness of two levels: the distance grows as they are, and does not with grain."""
    evaluator, cheat = GlyphEvaluator(protocol), _real_images(protocol)
    uneven = lambda noise, *given: cheat(noise, *given) + _noise(noise, *given) * 2 / 127.5  # noqa: E731
    metrics = evaluator.evaluate(uneven, (3, 64, 64))
    assert metrics["fd_efficientnet"] > 1.5 * metrics["fd_efficientnet_floor"]
    assert metrics["fd_efficientnet_grain"] < 1.1 * metrics["fd_efficientnet_grain_floor"]


def test_grain_is_that_of_its_seeds():
    images = torch.full((40, 3, 16, 16), 128, dtype=torch.uint8)
    grained = with_grain(images, 8.0, range(40))
    assert grained.float().mean() == pytest.approx(128, abs=0.3) and grained.float().std() == pytest.approx(8, abs=0.2)
    assert torch.equal(grained[30:], with_grain(images[30:], 8.0, range(30, 40)))
    assert with_grain(images, 0.0, range(40)) is images


def test_images_of_another_size_are_refused(protocol):
    with pytest.raises(UserError, match="64x64"):
        GlyphEvaluator(protocol, Averages()).evaluate(lambda noise, *_: torch.zeros(len(noise), 3, 32, 32), LATENT)


def test_mean_pairwise_distance():
    features = torch.tensor([[[0.0, 0], [3, 4]], [[1, 1], [1, 2]]])
    assert mean_pairwise_distance(features) == pytest.approx(3)
    with pytest.raises(ValueError, match="two or more"):
        mean_pairwise_distance(features[:, :1])


def test_share_within_prompts():
    drawn = torch.Generator().manual_seed(0)
    prompt, noise = torch.randn(400, 1, 6, generator=drawn), torch.randn(400, 5, 6, generator=drawn)
    assert share_within_prompts(noise) == pytest.approx(1, abs=0.02)
    assert share_within_prompts(2 * prompt + noise) == pytest.approx(1 / 5, abs=0.02)
    assert share_within_prompts(prompt.expand(-1, 5, -1)) == 0


def test_metrics_of_the_embedded_pipeline(protocol):
    evaluator, teacher = GlyphEvaluator(protocol, Averages()), load_teacher("glyphs")
    metrics = evaluator.reconstruction(teacher)
    assert metrics["reading_reconstruction"] > 0.7 and metrics["colour_reconstruction"] > 0.98
    assert math.isfinite(metrics[f"fd_{evaluator.extractor.name}_reconstruction"])
    latents = draw_noise(range(len(protocol.prompts)), teacher.latent_shape)
    share = evaluator.noise_share(teacher, latents)
    assert share["noise_share"] > 0.95  # noise does not depend on prompts
    assert 0.1 < share["noise_share_real"] < 0.95


def test_reconstruction_that_is_not_finite_is_refused(protocol, tiny_pipeline):
    teacher = load_teacher(str(tiny_pipeline))
    teacher.vae.encoder.conv_in.bias.data[0] = float("nan")
    with pytest.raises(UserError, match="is not finite"):
        GlyphEvaluator(protocol, Averages()).reconstruction(teacher)


class Student(NothingToMove, pl.LightningModule):
    """The least that the callback needs of `Diffusion2GAN`."""

    def __init__(self):
        super().__init__()
        self.images_seen = 0
        self.generator_ema = lambda noise, conditioning: noise
        self.teacher = SimpleNamespace(
            latent_shape=LATENT,
            encode=lambda prompts: torch.zeros(len(prompts), 1, 1),
            decode=lambda z: _noise(z, None, None),
        )

    def validation_step(self, *_):
        pass

    test_step = validation_step

    def val_dataloader(self):
        return [0]

    test_dataloader = val_dataloader


def test_callback_logs_the_metrics(protocol, monkeypatch):
    monkeypatch.setitem(protocols.GLYPH_PROTOCOLS, "tiny", protocol)
    monkeypatch.setattr("diffgan.evaluation.glyph_evaluator.EfficientNetFeatures", Averages)
    callback = GlyphEvaluation("tiny")
    trainer = pl.Trainer(
        callbacks=[callback], logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False
    )
    student = Student()
    trainer.validate(student, verbose=False)
    assert trainer.callback_metrics["evaluation/images"] == 120
    assert trainer.callback_metrics["evaluation/fd_averages"] > 0
    assert callback.metrics["protocol_digest"] == protocol.digest
    trainer.test(student, verbose=False)
    assert "evaluation/reading" in trainer.callback_metrics
