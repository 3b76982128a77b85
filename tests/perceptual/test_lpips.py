"""LatentLPIPS and ELatentLPIPS through their public interface: values, derivatives, files."""

import subprocess
import sys

import pytest
import torch

from diffgan import ELatentLPIPS, LatentLPIPS
from diffgan.errors import UserError
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16, fold_batch_norm
from diffgan.perceptual.weights import PerceptualWeights, load_weights, save_weights
from diffgan.teachers.registry import load_teacher

SPACE = LatentSpace(channels=3, factor=4, scale=1.0)


def with_trained_norms(network):
    """Give the batch norms statistics and factors like those of a trained network."""
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
    network = with_trained_norms(LatentVGG16(3, width=0.125))
    save_weights(tmp_path / "vgg.safetensors", PerceptualWeights(network, SPACE))
    return tmp_path / "vgg.safetensors"


def test_three_max_pools_are_omitted():
    taps = LatentVGG16(4, width=0.25)(torch.randn(1, 4, 16, 16))
    assert [tuple(t.shape[1:]) for t in taps] == [
        (16, 16, 16), (32, 16, 16), (64, 16, 16), (128, 16, 16), (128, 8, 8)
    ]  # fmt: skip
    convolutions = [m for m in LatentVGG16(4).modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 13 and convolutions[-1].out_channels == 512


def test_synchronised_batch_norm_is_folded():
    """As the recipes for several GPUs train it: `sync_batchnorm` of the trainer replaces every batch norm."""
    network = with_trained_norms(LatentVGG16(4, width=0.125)).eval()
    expected = fold_batch_norm(network).state_dict()
    folded = fold_batch_norm(torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)).state_dict()
    assert all(torch.equal(folded[name], value) for name, value in expected.items())


def test_folding_keeps_the_function():
    torch.manual_seed(1)
    network = with_trained_norms(LatentVGG16(3, width=0.125)).eval()
    x = torch.randn(2, 3, 16, 16)
    for expected, tap in zip(network(x), fold_batch_norm(network)(x), strict=True):
        torch.testing.assert_close(tap, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_file_keeps_the_function(norm, tmp_path):
    torch.manual_seed(2)
    network = with_trained_norms(LatentVGG16(3, width=0.125, norm=norm, taps="pool")).eval()
    heads = [torch.rand(channels) for channels in network.tap_channels]
    save_weights(tmp_path / "file.safetensors", PerceptualWeights(network, SPACE, heads, 1e-8))
    loaded = load_weights(tmp_path / "file.safetensors")
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(loaded.network(x), network(x), rtol=1e-4, atol=1e-5)
    assert (loaded.space, loaded.eps) == (SPACE, 1e-8)
    assert all(torch.equal(a, b) for a, b in zip(loaded.heads, heads, strict=True))


def test_the_package_ships_weights_of_its_own_latents():
    assert LatentLPIPS("glyphs").space == load_teacher("glyphs").space


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


@pytest.mark.parametrize(("taps", "omitted_pools", "least"), [("relu", 3, 2), ("relu", 0, 16), ("pool", 3, 4)])
def test_inputs_that_the_pools_leave_nothing_of_are_refused(taps, omitted_pools, least, tmp_path):
    network = LatentVGG16(3, width=0.1, norm="none", taps=taps, omitted_pools=omitted_pools)
    save_weights(tmp_path / "weights.safetensors", PerceptualWeights(network, SPACE))
    loss = LatentLPIPS(tmp_path / "weights.safetensors")
    smallest = torch.randn(2, 1, 3, least, least)
    assert loss(*smallest).isfinite().all()
    with pytest.raises(UserError, match=f"needs sides of at least {least}, not {least} x {least - 1}"):
        loss(*smallest[..., 1:])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_generator_makes_the_draws_repeatable(weights):
    loss = ELatentLPIPS(weights)
    x, y = torch.randn(2, 4, 3, 16, 16)
    assert torch.equal(loss(x, y, generator=seeded(1)), loss(x, y, generator=seeded(1)))
    assert not torch.equal(loss(x, y, generator=seeded(1)), loss(x, y, generator=seeded(2)))
    assert not torch.equal(loss(x, y), loss(x, y))


def test_transforms_averages_as_many_draws(weights):
    x, y = torch.randn(2, 2, 3, 16, 16)
    one, three, stream = ELatentLPIPS(weights), ELatentLPIPS(weights, transforms=3), seeded()
    mean = sum(one(x, y, generator=stream) for _ in range(3)) / 3
    torch.testing.assert_close(three(x, y, generator=seeded()), mean)


def test_l1_is_added_only_on_request(weights):
    x, y = torch.randn(2, 2, 3, 16, 16)
    plain, mixed = ELatentLPIPS(weights), ELatentLPIPS(weights, l1_weight=0.5)
    difference = mixed(x, y, generator=seeded()) - plain(x, y, generator=seeded())
    torch.testing.assert_close(difference, 0.5 * (x - y).abs().mean((1, 2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [LatentLPIPS, ELatentLPIPS])
def test_symmetric(kind, weights):
    loss = kind(weights)
    x, y = torch.randn(2, 4, 3, 16, 16)
    torch.testing.assert_close(loss(x, y, generator=seeded()), loss(y, x, generator=seeded()))


def test_descent_never_gets_below_zero(weights):
    """200 steps of descent from random starts; a distance that can become negative would do so."""
    loss = LatentLPIPS(weights)
    x, y = torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 8, 8)
    optimizer, start = torch.optim.Adam([x], lr=0.05), loss(x, y).detach()
    for _ in range(200):
        distance = loss(x, y)
        assert distance.min() >= 0
        optimizer.zero_grad()
        distance.sum().backward()
        optimizer.step()
    assert (loss(x, y) < 0.3 * start).all()


def test_second_derivatives(weights):
    loss = ELatentLPIPS(weights).double()
    x, y = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(x, y, generator=seeded()).sum(), x, create_graph=True)
    direction = torch.randn_like(x)
    (product,) = torch.autograd.grad((gradient * direction).sum(), x)
    step, slopes = 1e-6, []
    for sign in (1, -1):
        moved = (x.detach() + sign * step * direction).requires_grad_(True)
        slopes.append(torch.autograd.grad(loss(moved, y, generator=seeded()).sum(), moved)[0])
    torch.testing.assert_close(product, (slopes[0] - slopes[1]) / (2 * step), rtol=1e-3, atol=1e-6)


def test_under_autocast_it_stays_close_and_in_fp32(weights):
    loss = ELatentLPIPS(weights)
    x, y = torch.randn(2, 2, 3, 16, 16)
    exact = loss(x, y, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss(x.bfloat16(), y.bfloat16(), generator=seeded())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)


def test_under_autocast_the_network_follows_its_weights(weights):
    """Weights are converted once, and again after a change; the taps are those of autocast itself."""
    loss, x = LatentLPIPS(weights), torch.randn(2, 3, 16, 16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        loss.taps(x)
    others = {name: 2 * weight for name, weight in loss.network.state_dict().items()}
    for change in (lambda: None, lambda: loss.network.load_state_dict(others), lambda: loss.double().float()):
        change()
        with torch.autocast("cpu", torch.bfloat16):
            inputs = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)
            for tap, expected in zip(loss.taps(inputs), loss.network(inputs), strict=True):
                assert tap.dtype == torch.bfloat16
                assert torch.equal(tap, expected)
    assert not any("_lower" in name for name in loss.state_dict())


def test_built_in_inference_mode_it_is_the_same_under_autocast(weights):
    x = torch.randn(2, 3, 16, 16)
    values = []
    for mode in (False, True):
        with torch.inference_mode(mode), torch.autocast("cpu", torch.bfloat16):
            values.append(LatentLPIPS(weights)(x, x + 1))
    assert torch.equal(*values)


def test_compiled_it_has_the_same_gradient(weights):
    loss = LatentLPIPS(weights)
    compiled = torch.compile(loss, backend="aot_eager")  # the graph of a compiler, without a C++ compiler's minutes
    x, y = torch.randn(2, 2, 3, 8, 8)
    gradients = []
    for distance in (loss, compiled):
        start = x.clone().requires_grad_(True)
        distance(start, y).sum().backward()
        gradients.append(start.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_checkpointing_keeps_less_and_has_the_same_gradient(weights):
    x, y = torch.randn(2, 2, 3, 16, 16)
    gradients, kept = [], []
    for checkpointing in (False, True):
        start, sizes = x.clone().requires_grad_(True), {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        loss = LatentLPIPS(weights, checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss(start, y).sum()
        value.backward()
        gradients.append(start.grad)
        kept.append(sum(sizes.values()))
    torch.testing.assert_close(*gradients)
    assert kept[1] < 0.7 * kept[0]


def test_it_requires_torch_and_safetensors_alone():
    """Using the distance imports no other package than these two import themselves."""
    program = """
import sys, torch, safetensors.torch
x = torch.randn(1, 3, 16, 16, requires_grad=True)
packages = lambda: {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
before = packages()
from diffgan import ELatentLPIPS
ELatentLPIPS("glyphs", "bgcno")(x, torch.zeros_like(x)).sum().backward()
assert x.grad.abs().sum() > 0
print(*packages() - before)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["diffgan"]


def test_it_works_where_lightning_and_diffusers_are_missing():
    blocked = "import sys; sys.modules['lightning'] = sys.modules['diffusers'] = None; "
    use = "from diffgan import ELatentLPIPS; print(ELatentLPIPS('glyphs').space.channels)"
    result = subprocess.run([sys.executable, "-c", blocked + use], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "3"
