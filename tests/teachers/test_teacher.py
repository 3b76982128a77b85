"""The teacher by itself: encoding of equal and of long prompts, directories that are no pipelines."""

import pytest
import torch

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
