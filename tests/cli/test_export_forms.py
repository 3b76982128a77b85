"""Exports in 16 bits and as one file: opened by stock diffusers, measured, and refused in one line."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffgan.__main__ import main
from diffgan.cli.export_forms import convert
from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.storage.digests import digest
from diffgan.teachers.registry import load_teacher
from tests.pair_sets import contents
from tests.runs import distillation, refused, write

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def run(tiny_pipeline, pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    config = distillation(tiny_pipeline, pairs, folder)
    config["model"]["init_args"]["images"] = 16
    main(["fit", "-c", write(folder / "fit.yaml", config)])
    return folder / "run"


@pytest.fixture(scope="module")
def exact(run, tmp_path_factory):
    """The export in float32."""
    folder = tmp_path_factory.mktemp("exact") / "student"
    main(["export", str(run), str(folder)])
    return folder


def latents(pipeline, dtype, prompts):
    pipeline.set_progress_bar_config(disable=True)
    noise = draw_noise(range(len(prompts)), (4, 8, 8)).to(dtype)
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "latents": noise, "output_type": "latent"}
    return pipeline(list(prompts), **options).images.float()


@pytest.mark.parametrize("name", HALF)
def test_half_export_is_measured_and_opens_in_either_dtype(run, exact, tmp_path, capsys, name):
    main(["export", str(run), str(tmp_path / "student"), "--dtype", name])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "student" / "diffgan.json").read_text())
    largest = record["difference_to_float32"]["largest"]
    assert record["dtype"] == name and f"{name}: x^ differs from float32 by at most {largest:.2e}" in printed
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        weights = load_file(tmp_path / "student" / f"{part}.safetensors")
        originals = load_file(exact / f"{part}.safetensors")
        assert all(torch.equal(weights[key], originals[key].to(HALF[name])) for key in originals)
    prompts = ["", "a red bicycle against a wall"]
    expected = latents(DiffusionPipeline.from_pretrained(exact), torch.float32, prompts)
    without_arguments = DiffusionPipeline.from_pretrained(tmp_path / "student")
    assert {without_arguments.unet.dtype, without_arguments.text_encoder.dtype} == {torch.float32}
    half = DiffusionPipeline.from_pretrained(tmp_path / "student", torch_dtype=HALF[name])
    for pipeline, dtype in ((without_arguments, torch.float32), (half, HALF[name])):
        difference = (latents(pipeline, dtype, prompts) - expected).abs().max().item()
        assert 0 < difference < 2 * largest + 2e-2  # stock diffusers rounds the latent too


def test_record_describes_the_run_without_paths(exact, run, tiny_pipeline):
    record = json.loads((exact / "diffgan.json").read_text())
    assert record.pop("checkpoint") == digest(run / "checkpoints" / "last.ckpt")
    assert record.pop("pairs") | {"teacher_digest": "", "prompts_digest": ""} == {
        **{"pairs": 40, "steps": 2, "guidance": 2.0, "precision": "32-true", "seed_base": 0},
        **{"teacher_digest": "", "prompts_digest": ""},
    }
    assert record == {
        "run": "run",
        "images_seen": 16,
        "teacher": {"name": "tiny", "pipeline": "StableDiffusionPipeline"},
        "method": {"name": "Diffusion2GAN", "images": 16, "regression": "PseudoHuber"},
    }
    for file in exact.rglob("*.json"):
        assert str(tiny_pipeline.parent.parent) not in file.read_text(), file


def test_metrics_are_those_of_the_exported_checkpoint_alone(run, tmp_path):
    """A record of another checkpoint, and a damaged one, say nothing about this one."""
    copy = shutil.copytree(run, tmp_path / "run")
    record = {"protocol": "p", "protocol_digest": "d", "images_seen": 16, "metrics": {"evaluation/fid": 2.0, "lr": 1}}
    for number, checkpoint in enumerate((digest(copy / "checkpoints" / "last.ckpt"), "0" * 32, None)):
        content = json.dumps(record | {"checkpoint": {"digest": checkpoint}}) if checkpoint else "{"
        (copy / "metrics.json").write_text(content)
        main(["export", str(copy), str(tmp_path / f"student-{number}")])
        found = json.loads((tmp_path / f"student-{number}" / "diffgan.json").read_text()).get("evaluation")
        kept = {"protocol": "p", "protocol_digest": "d", "images_seen": 16, "metrics": {"evaluation/fid": 2.0}}
        assert found == (kept if number == 0 else None)


def test_grid_of_the_exported_weights_is_copied(run, exact):
    assert (exact / "samples.png").read_bytes() == (run / "samples" / "images-00000016.png").read_bytes()


def test_measured_difference_is_that_of_the_networks(exact):
    """Of a student whose x^ is a known value: a bias that bfloat16 rounds from 1.001953125 to 1."""
    teacher = load_teacher(str(exact))
    for weight in teacher.unet.parameters():
        weight.zero_()
    teacher.unet.conv_out.bias.fill_(1 + 2**-9)
    alpha, sigma = teacher.schedule.alpha(999), teacher.schedule.sigma(999)
    assert teacher.schedule.prediction_type == "v_prediction"  # x^ = alpha z - sigma v
    record = convert(teacher, torch.bfloat16)["difference_to_float32"]
    # z is rounded to bfloat16 for the network alone, whose output no longer depends on it
    assert record["largest"] == pytest.approx((sigma * 2**-9).item(), abs=1e-6) and record["images"] == 4
    assert alpha < 0.1 and 1 < record["largest_value"] < 1.5


@pytest.mark.parametrize("place", ["weight", "activation"])
def test_overflow_in_float16_is_refused(exact, place):
    teacher = load_teacher(str(exact))
    if place == "weight":
        teacher.unet.conv_out.bias[0] = 1e6
    else:
        teacher.unet.conv_in.weight.fill_(6e4)
    with pytest.raises(UserError, match=r"--dtype: .*overflows in float16; use bfloat16 or float32"):
        convert(teacher, torch.float16)


def test_unknown_dtype_is_refused(run, tmp_path, capsys):
    assert "float16" in refused(capsys, "export", run, tmp_path / "student", "--dtype", "int8")
    assert not (tmp_path / "student").exists()


# ---- one file ----


def test_single_file_has_the_student_s_weights_and_record(run, exact, tmp_path, capsys):
    file = tmp_path / "files" / "student.safetensors"
    for _ in range(2):  # a file of an earlier export is replaced
        main(["export", str(run), str(tmp_path / "student"), "--single_file", str(file)])
    assert f"{file}: the same weights in the original layout" in capsys.readouterr().out
    assert contents(tmp_path / "student") == contents(exact) and [path.name for path in file.parent.iterdir()] == [
        file.name
    ]
    with safe_open(file, "pt") as tensors:
        assert json.loads(tensors.metadata()["diffgan"]) == json.loads((exact / "diffgan.json").read_text())
    pipeline = StableDiffusionPipeline.from_single_file(str(file), config=str(exact), local_files_only=True)
    expected = latents(DiffusionPipeline.from_pretrained(exact), torch.float32, ["digit 7"])
    torch.testing.assert_close(latents(pipeline, torch.float32, ["digit 7"]), expected, atol=1e-5, rtol=0)


def test_single_file_in_half(run, tmp_path):
    file = tmp_path / "student.safetensors"
    main(["export", str(run), str(tmp_path / "student"), "--dtype", "float16", "--single_file", str(file)])
    with safe_open(file, "pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}  # noqa: SIM118
        assert json.loads(tensors.metadata()["diffgan"])["dtype"] == "float16"


def test_other_s_files_are_kept(run, tmp_path, capsys):
    output = tmp_path / "student"
    text, weights = tmp_path / "notes.safetensors", tmp_path / "weights.safetensors"
    text.write_text("mine")
    save_file({"a": torch.zeros(1)}, weights)
    for file in (text, weights):
        before = file.read_bytes()
        (line,) = refused(capsys, "export", run, output, "--single_file", file).splitlines()
        assert f"--single_file: {file} exists and was not written by export" in line
        assert file.read_bytes() == before and not output.exists()
    assert "must end in .safetensors" in refused(capsys, "export", run, output, "--single_file", tmp_path / "a.ckpt")
    inside = output / "student.safetensors"
    assert "choose another place" in refused(capsys, "export", run, output, "--single_file", inside)
