"""LPIPS in pixels as a distance of latents."""

import pytest
import torch
from diffusers import AutoencoderKL

from diffgan.errors import UserError
from diffgan.latent_space import PIXELS, LatentSpace
from diffgan.losses.regression import Perceptual
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.lpips import LatentLPIPS
from diffgan.perceptual.pixels import PixelLPIPS
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from diffgan.storage.embedded import embedded

VAE = embedded("teacher/vae")


@pytest.fixture
def weights(tmp_path):
    """A file of random weights for pixels."""
    torch.manual_seed(0)
    save_weights(tmp_path / "pixels.safetensors", PerceptualWeights(LatentVGG16(3, 0.125, omitted_pools=0), PIXELS))
    return str(tmp_path / "pixels.safetensors")


def latents():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)


def test_it_is_the_distance_of_the_decoded_images(weights):
    x, y = (latent[None] for latent in latents())
    vae = AutoencoderKL.from_pretrained(VAE).eval()
    scale = vae.config.scaling_factor
    with torch.no_grad():
        images = [vae.decode(latent / scale).sample for latent in (x, y)]
        expected = LatentLPIPS(weights)(*images)
        found = PixelLPIPS(weights, str(VAE))(x, y)
    torch.testing.assert_close(found, expected)
    assert found.shape == (1,) and found.item() > 0


def test_the_gradient_goes_to_the_generated_latent_alone(weights):
    x, y = (latent[None].requires_grad_() for latent in latents())
    distance = PixelLPIPS(weights, "glyphs")
    distance(x, y).sum().backward()
    assert x.grad.abs().sum() > 0 and y.grad is None
    assert all(parameter.grad is None for parameter in distance.parameters())
    assert distance(x, x).item() == 0


def test_gradient_checkpointing_changes_nothing(weights):
    x, y = (latent[None] for latent in latents())
    gradients = []
    for checkpointing in (False, True):
        latent = x.clone().requires_grad_()
        PixelLPIPS(weights, "glyphs", checkpointing)(latent, y).sum().backward()
        gradients.append(latent.grad)
    torch.testing.assert_close(*gradients)


def test_it_is_a_regression_loss_of_its_latent_space(weights):
    loss = Perceptual(PixelLPIPS(weights, "glyphs"))
    space = LatentSpace.of_config(AutoencoderKL.load_config(VAE))
    loss.check_space(space)
    with pytest.raises(UserError, match="glyphs: an autoencoder of"):
        loss.check_space(PIXELS)
    assert not loss.train().distance.vae.training


def test_weights_of_latents_are_refused():
    with pytest.raises(UserError, match="trained on"):
        PixelLPIPS(str(embedded("latent_lpips.safetensors")), "glyphs")
