"""Conformance of every family, on a tiny random pipeline of its class: the teacher computes what stock diffusers does.

A new family is one more builder in `tests.pipelines.FAMILIES`.
"""

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffgan.conditioning import Conditioning
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.nets.generator import OneStepGenerator
from diffgan.noise import draw_noise
from diffgan.teachers.cost import NetworkCost
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.registry import FAMILIES as SUPPORTED
from diffgan.teachers.registry import load_teacher
from diffgan.teachers.schedule import SCHEDULER_SETTINGS
from tests.pipelines import FAMILIES, saved

PROMPTS = ["digit 7", "a bold capital A in red on cream", ""]
SOLVERS = ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return saved(FAMILIES[request.param], tmp_path_factory.mktemp("family") / request.param)


@pytest.fixture(scope="module")
def teacher(folder):
    return load_teacher(str(folder))


@pytest.fixture
def stock(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = with_our_settings(pipe, "DDIMScheduler")
    return pipe


def with_our_settings(pipe, solver):
    """Stock diffusers with the README's settings: trailing spacing, last alpha 1, no clipping, PNDM as in SD1.x."""
    return getattr(diffusers, solver).from_config(pipe.scheduler.config, **SCHEDULER_SETTINGS, skip_prk_steps=True)


def test_every_family_is_tested():
    assert {type(build()).__name__ for build in FAMILIES.values()} == set(SUPPORTED)


def test_encodes_as_stock(teacher, stock):
    """Both halves of guidance, in every argument of the network."""
    calls = []
    stock.unet.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    noise = draw_noise(range(3), teacher.latent_shape)
    stock(PROMPTS, latents=noise, num_inference_steps=1, guidance_scale=2.0, output_type="latent")
    ours = Conditioning.cat([teacher.unconditional(3), teacher.encode(PROMPTS)]).arguments()
    theirs = {name: calls[0].get(name) for name in ours}
    torch.testing.assert_close(ours["encoder_hidden_states"], theirs["encoder_hidden_states"], atol=1e-5, rtol=1e-5)
    assert (ours["added_cond_kwargs"] is None) == (theirs["added_cond_kwargs"] is None)
    for name, value in (ours["added_cond_kwargs"] or {}).items():
        torch.testing.assert_close(value, theirs["added_cond_kwargs"][name], atol=1e-5, rtol=1e-5)


def test_encoding_distinguishes_prompts_and_does_not_depend_on_the_batch(teacher):
    together = teacher.encode([*PROMPTS, PROMPTS[0]])
    for i, prompt in enumerate(PROMPTS):
        alone = teacher.encode([prompt])
        for rows, row in zip(together, alone, strict=True):
            if row is not None:
                torch.testing.assert_close(rows[i : i + 1], row, atol=1e-5, rtol=1e-5)
    assert (together.text[0] - together.text[1]).abs().max() > 1e-3
    assert teacher.encode(["word " * 500]).text.shape == teacher.encode([""]).text.shape


@pytest.mark.parametrize("solver", [*SOLVERS, "PNDMScheduler", "UniPCMultistepScheduler", "KDPM2DiscreteScheduler"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_ode_equals_the_stock_loop(teacher, stock, guidance, solver):
    noise = draw_noise(range(3), teacher.latent_shape)
    stock.scheduler = with_our_settings(stock, solver)
    options = {"num_inference_steps": 5, "guidance_scale": guidance, "latents": noise, "output_type": "latent"}
    calls = []
    ours = teacher.solve(noise, teacher.encode(PROMPTS), 5, guidance, lambda: calls.append(1), solver)
    torch.testing.assert_close(ours, stock(PROMPTS, **options).images, atol=1e-4, rtol=1e-4)
    assert len(calls) == teacher.network_calls(5, solver) == len(stock.scheduler.timesteps)
    assert (ours - noise).abs().max() > 0.1


def test_images_equal_stock(teacher, stock):
    noise = draw_noise(range(3), teacher.latent_shape)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "latents": noise, "output_type": "pt"}
    ours = teacher.decode(teacher.solve(noise, teacher.encode(PROMPTS), 2, 3.0))
    torch.testing.assert_close((ours.clamp(-1, 1) + 1) / 2, stock(PROMPTS, **options).images, atol=1e-4, rtol=1e-4)


def test_student_equals_one_stock_step(teacher, stock):
    noise = draw_noise(range(3), teacher.latent_shape)
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "latents": noise, "output_type": "latent"}
    with torch.no_grad():
        ours = OneStepGenerator(teacher.unet, teacher.scheduler)(noise, teacher.encode(PROMPTS))
    torch.testing.assert_close(ours, stock(PROMPTS, **options).images, atol=1e-4, rtol=1e-4)


def test_discriminator_begins_with_the_teachers_features(teacher):
    latent, noise = draw_noise(range(6), teacher.latent_shape).chunk(2)
    conditioning, inputs = teacher.encode(PROMPTS), []
    hook = teacher.unet.conv_norm_out.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        teacher.unet(latent, 0, **conditioning.arguments())
        ours = MultiScaleDiscriminator(teacher.unet).eval().features(latent, noise, conditioning)
    hook.remove()
    torch.testing.assert_close(ours[-1][2], inputs[0], atol=1e-5, rtol=1e-5)


def test_latent_space_is_the_autoencoders(teacher, stock):
    channels, height, width = teacher.latent_shape
    factor = stock.vae_scale_factor
    assert (teacher.space.channels, teacher.space.factor) == (channels, factor)
    assert teacher.space.scale == stock.vae.config.scaling_factor
    images = torch.rand(2, 3, height * factor, width * factor) * 2 - 1
    latents = teacher.encode_images(images)
    with torch.no_grad():
        mode = stock.vae.encode(images).latent_dist.mode() * stock.vae.config.scaling_factor
        back = stock.vae.decode(latents / stock.vae.config.scaling_factor).sample
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
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe.scheduler, DDIMScheduler) and isinstance(pipe, teacher.pipeline_class)


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


def test_cost_follows_from_the_configuration(teacher, folder):
    """What is estimated without weights is what the loaded teacher has."""
    cost, row = NetworkCost(str(folder)), teacher.encode(["digit 7"])
    values = row.text.numel() + (0 if row.pooled is None else row.pooled.numel())
    assert cost.latent_shape == teacher.latent_shape and cost.embedding_bytes() == 2 * values
    assert cost.calls(5, "HeunDiscreteScheduler") == teacher.network_calls(5, "HeunDiscreteScheduler")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no other on a CPU
        teacher.solve(draw_noise([0], teacher.latent_shape), row, 1, 1.0)
    assert cost.flops() == counter.get_total_flops()


def test_runs_in_bfloat16(folder):
    """The latents of float32 within the precision of bfloat16; images are finite."""
    full, half = (load_teacher(str(folder), dtype) for dtype in (torch.float32, torch.bfloat16))
    noise = draw_noise(range(3), full.latent_shape)
    exact, rough = (teacher.solve(noise, teacher.encode(PROMPTS), 2, 3.0) for teacher in (full, half))
    assert all(tensor.dtype == torch.bfloat16 for tensor in half.encode(PROMPTS) if tensor is not None)
    assert rough.dtype == torch.float32  # the solver's
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()
    assert half.decode(rough).isfinite().all()
