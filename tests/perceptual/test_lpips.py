import pytest
import torch

from diffgan.errors import UserError
from diffgan.latents import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16, folded
from diffgan.perceptual.lpips import ELatentLPIPS, LatentLPIPS
from diffgan.perceptual.weights import load_weights, save_weights
from diffgan.teacher import Teacher

SPACE = LatentSpace(channels=3, factor=4, scale=1.0)


def lived_in(network):
    """Batch norms with the statistics and factors of a trained network."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_weights(tmp_path / "vgg.safetensors", lived_in(LatentVGG16(3, width=0.125)), SPACE)
    return tmp_path / "vgg.safetensors"


def test_three_max_pools_are_gone():
    taps = LatentVGG16(4, width=0.25)(torch.randn(1, 4, 16, 16))
    assert [tuple(t.shape[1:]) for t in taps] == [
        (16, 16, 16), (32, 16, 16), (64, 16, 16), (128, 16, 16), (128, 8, 8)
    ]  # fmt: skip
    convolutions = [m for m in LatentVGG16(4).modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 13 and convolutions[-1].out_channels == 512


def test_folding_keeps_the_function():
    torch.manual_seed(1)
    network = lived_in(LatentVGG16(3, width=0.125)).eval()
    x = torch.randn(2, 3, 16, 16)
    for expected, tap in zip(network(x), folded(network)(x), strict=True):
        torch.testing.assert_close(tap, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_file_keeps_the_function(norm, tmp_path):
    torch.manual_seed(2)
    network = lived_in(LatentVGG16(3, width=0.125, norm=norm, taps="pool")).eval()
    heads = [torch.rand(channels) for channels in network.tap_channels]
    save_weights(tmp_path / "file.safetensors", network, SPACE, heads)
    loaded = load_weights(tmp_path / "file.safetensors")
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(loaded.network(x), network(x), rtol=1e-4, atol=1e-5)
    assert loaded.space == SPACE and all(torch.equal(a, b) for a, b in zip(loaded.heads, heads, strict=True))


def test_the_package_ships_weights_of_its_own_latents():
    assert LatentLPIPS("glyphs").space == Teacher.from_pretrained("glyphs").space


def test_value_equals_a_float64_transcription(weights):
    network = load_weights(weights).network
    x, y = torch.randn(2, 2, 3, 8, 8)
    network.double()
    expected = torch.zeros(2, dtype=torch.float64)
    for f, g in zip(network(x.double()), network(y.double()), strict=True):
        for n in range(2):
            for i in range(f.shape[2]):
                for j in range(f.shape[3]):
                    a, b = f[n, :, i, j], g[n, :, i, j]
                    expected[n] += ((a / a.norm() - b / b.norm()) ** 2).sum() / f[0, 0].numel()
    torch.testing.assert_close(LatentLPIPS(weights)(x, y).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ensemble", ["", "bgo"])
def test_zero_iff_equal_and_no_gradient_to_target(weights, ensemble):
    loss = ELatentLPIPS(weights, ensemble)
    x, y = torch.randn(2, 4, 3, 16, 16)
    assert torch.equal(loss(x, x.clone()), torch.zeros(4))
    x.requires_grad_(True), y.requires_grad_(True)
    value = loss(x, y)
    assert value.shape == (4,) and (value > 0).all()
    value.sum().backward()
    assert x.grad.abs().sum() > 0 and y.grad is None
    assert all(p.grad is None for p in loss.parameters())


def test_stays_in_eval_mode(weights):
    assert not any(module.training for module in LatentLPIPS(weights).train().modules())


def test_other_latent_space_and_broken_files_are_refused(weights, tmp_path):
    loss = LatentLPIPS(weights)
    loss.check_space(SPACE)
    with pytest.raises(UserError, match="trained on"):
        loss.check_space(LatentSpace(channels=3, factor=8, scale=1.0))
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    for bad in (tmp_path / "cut.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(UserError, match=bad.name):
            LatentLPIPS(bad)
