"""LoRA adapters in the networks of every family: against stock diffusers, merged, and what is shared."""

import copy

import pytest
import torch

from diffgan.errors import UserError
from diffgan.nets.generator import OneStepGenerator
from diffgan.nets.lora import LoRA, merge_adapters, save_adapters, trainable, with_adapters
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher
from tests.pipelines import FAMILIES, saved
from tests.teachers.stock import load_stock, stock_latents

PROMPTS = ["digit 7", "a bold capital A in red on cream"]
SETTINGS = LoRA(rank=2, alpha=5.0)  # alpha is not the rank: files must state it


@pytest.fixture(scope="module", params=["sd1", "sdxl", "pixart", "sd3", "flux"])
def folder(request, tmp_path_factory):
    return saved(FAMILIES[request.param], tmp_path_factory.mktemp("family") / request.param)


@pytest.fixture
def teacher(folder):
    return load_teacher(str(folder), size=(32, 32))


def adapted(teacher):
    """A student's network with adapters that change its output."""
    torch.manual_seed(0)
    network = with_adapters(teacher.denoiser, SETTINGS)
    with torch.no_grad():
        for weight in trainable(network):
            weight.add_(0.3 * torch.randn_like(weight))
    return network


def generate(teacher, network):
    noise = draw_noise(range(2), teacher.latent_shape).to(network.dtype)
    with torch.no_grad():
        return OneStepGenerator(network, teacher.scheduler)(noise, teacher.encode(PROMPTS))


def relative(difference, reference):
    return (difference.abs().max() / reference.abs().max()).item()


def test_adapters_change_the_student_and_not_the_teacher(teacher):
    before = generate(teacher, teacher.denoiser)
    assert relative(generate(teacher, with_adapters(teacher.denoiser, SETTINGS)) - before, before) == 0  # B is zero
    assert relative(generate(teacher, adapted(teacher)) - before, before) > 1e-3
    assert torch.equal(generate(teacher, teacher.denoiser), before)


def test_weights_are_shared_and_frozen(teacher):
    network, base = adapted(teacher), list(teacher.denoiser.parameters())
    shared = [weight for weight in network.parameters() if any(weight is other for other in base)]
    assert len(shared) == len(base) and not any(weight.requires_grad for weight in base)
    names = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert names and all("lora_" in name for name in names)


def test_merged_adapters_compute_the_same(teacher):
    """In float64: the small SDXL amplifies the rounding of float32 to 1.3e-5 on some processors."""
    network = adapted(teacher.double())
    before, merged = generate(teacher, network), copy.deepcopy(network)
    merge_adapters(merged)
    assert relative(generate(teacher, merged) - before, before) < 1e-5
    assert {name: weight.shape for name, weight in merged.state_dict().items()} == {
        name: weight.shape for name, weight in teacher.denoiser.state_dict().items()
    }


def test_stock_diffusers_loads_the_file(teacher, folder, tmp_path):
    network, pipe = adapted(teacher), load_stock(folder, teacher)
    if not hasattr(pipe, "load_lora_weights"):
        with pytest.raises(UserError, match="loads no LoRA files into a PixArtSigmaPipeline"):
            save_adapters(network, type(pipe), tmp_path)
        return
    save_adapters(network, type(pipe), tmp_path)
    pipe.load_lora_weights(tmp_path)
    ours = generate(teacher, network)
    theirs = stock_latents(pipe, PROMPTS, draw_noise(range(2), teacher.latent_shape), 1, 1.0)
    assert relative(ours - theirs, ours) < 1e-5


def test_targets_choose_the_layers(teacher):
    network = with_adapters(teacher.denoiser, LoRA(rank=1, targets=["to_q"]))
    names = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert names and all(".to_q.lora_" in name for name in names)
    with pytest.raises(UserError, match=r"targets: to_x matches no layer of the \w+; its layers are named .*to_q"):
        with_adapters(teacher.denoiser, LoRA(rank=1, targets=["to_x"]))
