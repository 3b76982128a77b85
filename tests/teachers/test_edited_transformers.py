"""Transformer pipelines whose files do not fit each other: one line when they are loaded."""

import json
import shutil

import pytest

from diffgan.errors import UserError
from diffgan.teachers.cost import NetworkCost
from diffgan.teachers.registry import load_teacher
from tests.pipelines import FAMILIES, saved, t5, t5_tokenizer

SCHEDULER = "scheduler/scheduler_config.json"
DYNAMIC = {"use_dynamic_shifting": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("transformers")
    return {name: saved(FAMILIES[name], place / name) for name in ("pixart", "sd3", "flux")}


@pytest.fixture
def copy_of(folders, tmp_path):
    def copied(name):
        return shutil.copytree(folders[name], tmp_path / name)

    return copied


def refusal(folder):
    with pytest.raises(UserError) as error:
        load_teacher(str(folder))
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name, file, change, reason",
    [
        ("flux", SCHEDULER, {**DYNAMIC, "max_image_seq_len": 256}, "max_image_seq_len: 256 must be above 256"),
        ("flux", SCHEDULER, {**DYNAMIC, "base_shift": 1e300}, "base_shift: 1e+300 must be at least 0 and at most"),
        ("flux", SCHEDULER, {**DYNAMIC, "base_shift": None}, "cannot be loaded as a FluxPipeline"),
        ("sd3", SCHEDULER, {"shift": 0}, "shift: 0 must be above 0"),
        ("sd3", SCHEDULER, {"shift": -1.0}, "shift: -1.0 must be above 0"),
        ("sd3", "transformer/config.json", {"sample_size": 10**6}, "sample_size is 1000000 and must be"),
        ("flux", "transformer/config.json", {"axes_dims_rope": [4, 6, 4]}, "must add up to attention_head_dim, 16"),
        ("sd3", "model_index.json", {"text_encoder_3": 5}, "a pipeline without text_encoder_3 is not supported"),
        ("sd3", "model_index.json", {"tokenizer_3": []}, "a pipeline without tokenizer_3 is not supported"),
        ("sd3", "diffgan.json", {"size": 5}, "size: 5 must be two positive integers"),
        ("sd3", "diffgan.json", {"size": [True, 32]}, "must be two positive integers"),
        ("pixart", "diffgan.json", {"size": [10**9, 10**9]}, "must be at most 16384 on each side"),
    ],
)
def test_edited_files_are_refused(copy_of, name, file, change, reason):
    folder = copy_of(name)
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | change))
    assert reason in refusal(folder)


@pytest.mark.parametrize(
    "name, encoder, tokens",
    [("pixart", "text_encoder", 300), ("sd3", "text_encoder_3", 256), ("flux", "text_encoder_2", 512)],
)
def test_a_text_encoder_of_another_width_is_refused(copy_of, name, encoder, tokens):
    folder = copy_of(name)
    shutil.rmtree(folder / encoder)
    t5(t5_tokenizer(tokens), 24).save_pretrained(folder / encoder)
    assert "but those of the text encoders have 24" in refusal(folder)


def test_costs_are_not_estimated_of_what_no_pairs_are_made_of(tmp_path):
    folder = saved(FAMILIES["flux-schnell"], tmp_path / "schnell")
    assert NetworkCost(str(folder)).rows(1.0) == 1
    with pytest.raises(UserError, match="distilled without guidance; set it to 1"):
        NetworkCost(str(folder)).rows(3.0)
    values = json.loads((folder / SCHEDULER).read_text())
    (folder / SCHEDULER).write_text(json.dumps(values | {"shift": 0}))
    with pytest.raises(UserError, match="shift: 0 must be above 0"):
        NetworkCost(str(folder))
