import pytest
import torch

from diffgan.errors import UserError
from diffgan.latents import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16, load_vgg, save_vgg
from diffgan.perceptual.lpips import LatentLPIPS

SPACE = LatentSpace(channels=3, factor=4, scale=1.0)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = LatentVGG16(3, width=0.125)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    save_vgg(network, SPACE, tmp_path / "vgg.safetensors")
    return tmp_path / "vgg.safetensors"


def test_three_max_pools_are_gone():
    taps = LatentVGG16(4, width=0.25)(torch.randn(1, 4, 16, 16))
    assert [tuple(t.shape[1:]) for t in taps] == [
        (16, 16, 16), (32, 16, 16), (64, 16, 16), (128, 16, 16), (128, 8, 8)
    ]  # fmt: skip
    convolutions = [m for m in LatentVGG16(4).modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 13 and convolutions[-1].out_channels == 512


def test_value_equals_a_float64_transcription(weights):
    network, _ = load_vgg(weights)
    x, y = torch.randn(2, 2, 3, 8, 8)
    network.double()
    expected = torch.zeros(2, dtype=torch.float64)
    for f, g in zip(network(x.double()), network(y.double()), strict=True):
        for n in range(2):
            for i in range(f.shape[2]):
                for j in range(f.shape[3]):
                    a, b = f[n, :, i, j], g[n, :, i, j]
                    expected[n] += ((a / a.norm() - b / b.norm()) ** 2).sum() / f[0, 0].numel()
    torch.testing.assert_close(LatentLPIPS(weights, "")(x, y).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ensemble", ["", "bgo"])
def test_zero_iff_equal_and_no_gradient_to_target(weights, ensemble):
    loss = LatentLPIPS(weights, ensemble)
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
