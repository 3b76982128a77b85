import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.teacher import SCHEDULER, Teacher


@pytest.fixture(scope="module")
def teacher(tiny_pipeline):
    return Teacher.from_pretrained(str(tiny_pipeline))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ode_equals_the_stock_pipeline(teacher, tiny_pipeline, guidance):
    prompts = ["digit 7", "a bold capital A"]
    noise = draw_noise([0, 1], teacher.latent_shape)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **SCHEDULER)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 5, "guidance_scale": guidance, "latents": noise}
    stock = pipe(prompts, output_type="latent", **options).images
    ours = teacher.solve(noise, teacher.encode(prompts), 5, guidance)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)
    picture = pipe(prompts, output_type="pt", **options).images * 2 - 1
    torch.testing.assert_close(teacher.decode(ours).clamp(-1, 1), picture, atol=1e-4, rtol=1e-4)


def test_equal_prompts_are_encoded_once_and_alike(teacher, monkeypatch):
    sizes, forward = [], teacher.text_encoder.forward
    monkeypatch.setattr(teacher.text_encoder, "forward", lambda ids, *a, **k: (sizes.append(len(ids)), forward(ids))[1])
    both = teacher.encode(["digit 7", "", "digit 7"]).text
    assert sizes == [2] and torch.equal(both[0], both[2]) and not torch.equal(both[0], both[1])


def test_too_long_prompts_are_cut(teacher):
    assert teacher.encode(["word " * 500]).text.shape == teacher.encode([""]).text.shape


def test_tells_which_prompts_it_cuts(teacher):
    prompts = ["7 " * count for count in range(1, 20)]
    text = teacher.encode(prompts).text
    as_if_shorter = [torch.equal(long, short) for long, short in zip(text[1:], text[:-1], strict=True)]
    assert teacher.truncated(prompts) == [False, *as_if_shorter] and sum(as_if_shorter) == 5  # 16 less begin and end


def test_everything_is_frozen_and_in_eval_mode(teacher):
    teacher.train()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_what_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model_index.json"):
        Teacher.from_pretrained(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="not a StableDiffusionPipeline"):
        Teacher.from_pretrained(str(tmp_path))


def test_embedded_teacher_is_a_stock_pipeline():
    glyphs = Teacher.from_pretrained("glyphs")
    noise = draw_noise([1], glyphs.latent_shape)
    image = glyphs.decode(glyphs.solve(noise, glyphs.encode(["capital A"]), 2, 3.0))
    assert image.shape == (1, 3, 64, 64) and torch.isfinite(image).all()
