"""The teacher by itself: encoding of equal and of long prompts, directories that are no pipelines."""

import pytest
import torch

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher


@pytest.fixture(scope="module")
def teacher(tiny_pipeline):
    return load_teacher(str(tiny_pipeline))


def test_equal_prompts_are_encoded_once_and_alike(teacher, monkeypatch):
    sizes, forward = [], teacher.text_encoder.forward
    monkeypatch.setattr(teacher.text_encoder, "forward", lambda ids, *a, **k: (sizes.append(len(ids)), forward(ids))[1])
    both = teacher.encode(["digit 7", "", "digit 7"]).text
    assert sizes == [2] and torch.equal(both[0], both[2]) and not torch.equal(both[0], both[1])


def test_reports_which_prompts_are_truncated(teacher):
    prompts = ["7 " * count for count in range(1, 20)]
    text = teacher.encode(prompts).text
    as_if_shorter = [torch.equal(long, short) for long, short in zip(text[1:], text[:-1], strict=True)]
    assert teacher.truncated(prompts) == [False, *as_if_shorter] and sum(as_if_shorter) == 5  # 16 less begin and end


def test_a_directory_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model_index.json"):
        load_teacher(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="not a StableDiffusionPipeline"):
        load_teacher(str(tmp_path))


def test_embedded_teacher_is_a_stock_pipeline():
    glyphs = load_teacher("glyphs")
    noise = draw_noise([1], glyphs.latent_shape)
    image = glyphs.decode(glyphs.solve(noise, glyphs.encode(["capital A"]), 2, 3.0))
    assert image.shape == (1, 3, 64, 64) and torch.isfinite(image).all()


def solved(teacher, combine, noise, prompts, steps, guidance):
    """The ODE written out: `combine` gets the network's two outputs, the latent is float32."""
    scheduler, latent = teacher.solver(steps), noise
    rows = Conditioning.cat([teacher.unconditional(len(noise)), teacher.encode(prompts)])
    for t in scheduler.timesteps:
        both = teacher.unet(torch.cat([latent, latent]), t, **rows.arguments(), return_dict=False)[0]
        latent = scheduler.step(combine(*both.chunk(2), guidance), t, latent, return_dict=False)[0]
    return latent


def in_their_dtype(unconditional, conditional, guidance):
    return unconditional + guidance * (conditional - unconditional)


def in_float32(unconditional, conditional, guidance):
    return in_their_dtype(unconditional.float(), conditional.float(), guidance)


@torch.no_grad()
def test_guidance_is_combined_in_float32(teacher):
    noise, prompts = draw_noise(range(3), teacher.latent_shape), ["digit 7", "capital A", "red"]
    options = noise, prompts, 3, 8.0
    ours = teacher.solve(noise, teacher.encode(prompts), 3, 8.0)
    assert torch.equal(ours, solved(teacher, in_their_dtype, *options))  # in float32 nothing changes
    with torch.autocast("cpu", torch.bfloat16):
        ours, expected = teacher.solve(noise, teacher.encode(prompts), 3, 8.0), solved(teacher, in_float32, *options)
        assert ours.dtype == torch.float32 and torch.equal(ours, expected)
        assert not torch.equal(ours, solved(teacher, in_their_dtype, *options))


def test_a_network_in_bfloat16_leaves_the_latent_in_float32(tiny_pipeline):
    """Steps are smaller than bfloat16 resolves."""
    half, full = (load_teacher(str(tiny_pipeline), dtype) for dtype in (torch.bfloat16, torch.float32))
    noise = draw_noise(range(3), half.latent_shape)
    ours, exact = (teacher.solve(noise, teacher.encode(["red"] * 3), 8, 1.0) for teacher in (half, full))
    assert ours.dtype == torch.float32 and not torch.equal(ours, ours.bfloat16().float())
    assert (ours - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


def test_text_is_finite_under_float16():
    """The range of float16 ends at 65504; attention masks are the smallest number of float32."""
    glyphs, prompts = load_teacher("glyphs"), ["", "capital A in red", "word " * 200]
    exact = glyphs.encode(prompts).text
    with torch.autocast("cpu", torch.float16):
        half = glyphs.encode(prompts).text
    assert half.isfinite().all() and (half - exact).abs().max() < 0.01 * exact.abs().max()
