"""Conformance of every family, on a tiny random pipeline of its class: the teacher computes what stock diffusers does.

A new family is one more builder in `tests.pipelines.FAMILIES`.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffgan.errors import UserError
from diffgan.nets.generator import OneStepGenerator
from diffgan.noise import draw_noise
from diffgan.teachers.cost import NetworkCost
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.guidance import NO_GUIDANCE
from diffgan.teachers.registry import FAMILIES as SUPPORTED
from diffgan.teachers.registry import load_teacher
from tests.pipelines import FAMILIES, saved
from tests.teachers.stock import (
    load_stock,
    network_arguments,
    stock_images,
    stock_latents,
    tensors,
    with_our_settings,
)

PROMPTS = ["digit 7", "a bold capital A in red on cream", ""]
SIZE = (32, 32)  # of FLUX, whose usual size is 1024 pixels
DDIM = [
    *("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("PNDMScheduler", "UniPCMultistepScheduler", "KDPM2DiscreteScheduler"),
]
SOLVERS = {
    "pixart": ["DDIMScheduler", "DPMSolverMultistepScheduler"],
    "sd3": ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"],
    "sd3-without-t5": ["FlowMatchEulerDiscreteScheduler"],
    "flux": ["FlowMatchEulerDiscreteScheduler"],
    "flux-schnell": ["FlowMatchEulerDiscreteScheduler"],
}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return saved(FAMILIES[name], tmp_path_factory.mktemp("family") / name)


@pytest.fixture(scope="module")
def size(name):
    return SIZE if name.startswith("flux") else None


@pytest.fixture(scope="module")
def teacher(folder, size):
    return load_teacher(str(folder), size=size)


@pytest.fixture
def stock(folder, teacher):
    return load_stock(folder, teacher)


@pytest.fixture
def guidance(teacher):
    return 1.0 if teacher.guidance_kind == NO_GUIDANCE else 4.0


def test_every_family_is_tested():
    assert {type(build()).__name__ for build in FAMILIES.values()} == set(SUPPORTED)


def test_network_is_told_what_stock_tells_it(teacher, stock, guidance):
    """Every argument of the network, both halves of guidance among them."""
    noise = draw_noise(range(3), teacher.latent_shape)
    with network_arguments(teacher.denoiser) as ours:
        teacher.solve(noise, teacher.encode(PROMPTS), 1, guidance)
    with network_arguments(getattr(stock, teacher._adapter.component)) as theirs:
        stock_latents(stock, PROMPTS, noise, 1, guidance)
    ours, theirs = tensors(ours[0]), tensors(theirs[0])
    assert ours.keys() == theirs.keys() and len(ours) >= 3
    for argument, tensor in ours.items():
        expected = theirs[argument].to(tensor.dtype)
        torch.testing.assert_close(tensor.expand(expected.shape), expected, atol=1e-5, rtol=1e-5)


def test_encoding_distinguishes_prompts_and_does_not_depend_on_the_batch(teacher):
    together = teacher.encode([*PROMPTS, PROMPTS[0]])
    for i, prompt in enumerate(PROMPTS):
        alone = teacher.encode([prompt])
        for rows, row in zip(together, alone, strict=True):
            if row is not None:
                torch.testing.assert_close(rows[i : i + 1], row, atol=1e-5, rtol=1e-5)
    assert (together.text[0] - together.text[1]).abs().max() > 1e-3
    assert teacher.encode(["word " * 500]).text.shape == teacher.encode([""]).text.shape


def test_ode_equals_the_stock_loop(name, teacher, stock, guidance):
    noise = draw_noise(range(3), teacher.latent_shape)
    for solver in SOLVERS.get(name, DDIM):
        stock.scheduler = with_our_settings(stock, solver)
        for scale in {1.0, guidance}:
            calls = []
            ours = teacher.solve(noise, teacher.encode(PROMPTS), 5, scale, lambda calls=calls: calls.append(1), solver)
            theirs = stock_latents(stock, PROMPTS, noise, 5, scale)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg=lambda text, s=solver: f"{s}: {text}")
            assert len(calls) == teacher.network_calls(5, solver) == len(stock.scheduler.timesteps)
            assert (ours - noise).abs().max() > 0.1


def test_guidance_changes_the_latents(teacher):
    noise = draw_noise(range(3), teacher.latent_shape)
    plain = teacher.solve(noise, teacher.encode(PROMPTS), 2, 1.0)
    if teacher.guidance_kind == NO_GUIDANCE:
        with pytest.raises(UserError, match=r"guidance: 3.0 for a FluxPipeline .* set it to 1"):
            teacher.solve(noise, teacher.encode(PROMPTS), 2, 3.0)
    else:
        assert (teacher.solve(noise, teacher.encode(PROMPTS), 2, 3.0) - plain).abs().max() > 1e-3


def test_images_equal_stock(teacher, stock, guidance):
    noise = draw_noise(range(3), teacher.latent_shape)
    ours = teacher.decode(teacher.solve(noise, teacher.encode(PROMPTS), 2, guidance))
    theirs = stock_images(stock, PROMPTS, noise, 2, guidance)
    torch.testing.assert_close((ours.clamp(-1, 1) + 1) / 2, theirs, atol=1e-4, rtol=1e-4)


def test_student_equals_one_stock_step(teacher, stock):
    noise = draw_noise(range(3), teacher.latent_shape)
    with torch.no_grad():
        ours = OneStepGenerator(teacher.denoiser, teacher.scheduler)(noise, teacher.encode(PROMPTS))
    torch.testing.assert_close(ours, stock_latents(stock, PROMPTS, noise, 1, 1.0), atol=1e-4, rtol=1e-4)


def test_a_size_that_is_not_square(teacher, stock):
    """Twice as wide; sizes that do not fit the network are refused."""
    height, width = (side * teacher.space.factor for side in teacher.latent_shape[1:])
    usual = teacher.latent_shape
    try:
        teacher.set_size(height, 2 * width)
        noise = draw_noise(range(3), teacher.latent_shape)
        assert noise.shape[2:] == (usual[1], 2 * usual[2])
        with torch.no_grad():
            ours = OneStepGenerator(teacher.denoiser, teacher.scheduler)(noise, teacher.encode(PROMPTS))
        torch.testing.assert_close(ours, stock_latents(stock, PROMPTS, noise, 1, 1.0), atol=1e-4, rtol=1e-4)
        for wrong in ((height + 1, width), (0, width), (height, -width)):
            with pytest.raises(UserError, match=rf"size: {wrong[0]}x{wrong[1]}"):
                teacher.set_size(*wrong)
    finally:
        teacher.set_size(height, width)


def per_channel(values):
    return torch.tensor(values).view(1, -1, 1, 1)


def test_latent_space_is_the_autoencoders(teacher, stock):
    channels, height, width = teacher.latent_shape
    factor = stock.vae_scale_factor
    assert (teacher.space.channels, teacher.space.factor) == (channels, factor)
    scale, shift = stock.vae.config.scaling_factor, stock.vae.config.shift_factor or 0.0
    if stock.vae.config.latents_mean is not None:
        scale, shift = scale / per_channel(stock.vae.config.latents_std), per_channel(stock.vae.config.latents_mean)
    images = torch.rand(2, 3, height * factor, width * factor) * 2 - 1
    latents = teacher.encode_images(images)
    with torch.no_grad():
        mode = (stock.vae.encode(images).latent_dist.mode() - shift) * scale
        back = stock.vae.decode(latents / scale + shift).sample
    torch.testing.assert_close(latents, mode, atol=1e-5, rtol=1e-5)
    assert latents.shape == (2, channels, height, width)
    torch.testing.assert_close(teacher.decode(latents), back, atol=1e-5, rtol=1e-5)
    assert back.shape == images.shape and back.isfinite().all()


def test_everything_is_frozen_and_in_eval_mode(teacher):
    teacher.train()
    modules = {id(module) for module in teacher.modules()}
    assert all(id(encoder) in modules for encoder in teacher.text_encoders)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_written_as_a_stock_pipeline_it_is_the_same_teacher(teacher, tmp_path):
    teacher.as_pipeline().save_pretrained(tmp_path)
    again = load_teacher(str(tmp_path))
    assert type(again) is type(teacher) and again.settings == teacher.settings
    assert weights_digest(again) == weights_digest(teacher)
    pipe = load_stock(tmp_path, teacher)
    assert type(pipe.scheduler) is teacher.schedule_class.scheduler_class and isinstance(pipe, teacher.pipeline_class)


def test_digest_covers_every_component_that_decides_a_latent(folder):
    teacher = load_teacher(str(folder))
    digests = [weights_digest(teacher)]
    for network in (teacher.denoiser, *teacher.text_encoders):
        next(network.parameters()).add_(1)
        digests.append(weights_digest(teacher))
    for tokenizer in teacher.tokenizers:
        tokenizer.add_tokens(["unheard-of"])
        digests.append(weights_digest(teacher))
    assert len(set(digests)) == len(digests)


def test_cost_follows_from_the_configuration(teacher, folder, size):
    """What is estimated without weights is what the loaded teacher has."""
    cost, row = NetworkCost(str(folder), size), teacher.encode(["digit 7"])
    assert cost.latent_shape == teacher.latent_shape
    assert cost.embedding_bytes() == sum(tensor.nbytes for tensor in row if tensor is not None)
    assert cost.calls(5, None) == teacher.network_calls(5) == 5
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no other on a CPU
        teacher.solve(draw_noise([0], teacher.latent_shape), row, 1, 1.0)
    assert cost.flops() == counter.get_total_flops()


def test_runs_in_bfloat16(folder, size, guidance):
    """The latents of float32 within the precision of bfloat16; images are finite."""
    full, half = (load_teacher(str(folder), dtype, size) for dtype in (torch.float32, torch.bfloat16))
    noise = draw_noise(range(3), full.latent_shape)
    exact, rough = (teacher.solve(noise, teacher.encode(PROMPTS), 2, guidance) for teacher in (full, half))
    assert half.encode(PROMPTS).text.dtype == torch.bfloat16
    assert rough.dtype == torch.float32  # the solver's
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()
    assert half.decode(rough).isfinite().all()
