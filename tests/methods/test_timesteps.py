"""The student's timestep: training, grid of samples, export and the verbs that read an export."""

import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

from callbacks.sample_grid import SampleGrid
from diffgan.__main__ import main
from diffgan.errors import UserError
from diffgan.images import image_grid, to_uint8
from diffgan.losses.regression import MSE
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.nets.generator import OneStepGenerator
from diffgan.noise import draw_noise
from diffgan.teachers.pipeline_files import save_pipeline
from diffgan.teachers.registry import load_teacher
from diffgan.teachers.schedule import schedule_for
from tests.pipelines import FAMILIES, saved
from tests.runs import checkpoint, named, refused, write

PROMPTS = ["digit 7", "a bold capital A in red on cream"]
ONE_STEP = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}


def stock(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def averaged(run, teacher, timestep):
    generator = OneStepGenerator(copy.deepcopy(teacher.unet), teacher.scheduler, timestep)
    prefix, weights = "generator_ema.", checkpoint(run)["state_dict"]
    generator.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)})
    return generator


# ---- the schedule ----


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_a_schedule_that_ends_earlier_keeps_its_table(betas, zero_snr):
    scheduler = DDIMScheduler(
        beta_schedule=betas, rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction", clip_sample=False
    )
    whole = schedule_for(scheduler)
    ended = whole.ending_at(399)
    assert torch.equal(ended.scheduler.alphas_cumprod, scheduler.alphas_cumprod[:400])
    assert ended.last_timestep == 399 and ended.num_timesteps == 400 and ended.prediction_type == "v_prediction"
    assert whole.ending_at(999) is whole and whole.last_timestep == 999
    with pytest.raises(UserError, match=r"timesteps: 1000 is not between 0 and the teacher's last timestep, 999"):
        whole.ending_at(1000)


@pytest.mark.parametrize("timestep", [999, 399, 0])
@pytest.mark.parametrize("family", ["miniature", "sd1", "sd2", "sdxl"])
def test_an_exported_student_is_called_at_its_timestep(family, timestep, tmp_path):
    """By stock diffusers without further settings, and by this project as a teacher of one step.

    Equal within 1e-5 of the network's output, whose errors prediction of epsilon multiplies by sigma / alpha.
    """
    teacher = load_teacher(str(saved(FAMILIES[family], tmp_path / "teacher")))
    amplification = (teacher.schedule.sigma(timestep) / teacher.schedule.alpha(timestep)).item()
    tolerance = {"rtol": 0, "atol": 1e-5 * max(1.0, amplification if family in ("sd1", "sdxl") else 0)}
    noise, conditioning = draw_noise([5, 6], teacher.latent_shape), teacher.encode(PROMPTS)
    with torch.no_grad():
        expected = OneStepGenerator(teacher.unet, teacher.scheduler, timestep)(noise, conditioning)
    teacher.schedule = teacher.schedule.ending_at(timestep)
    save_pipeline(teacher.as_pipeline(), tmp_path / "student")
    pipe, called = stock(tmp_path / "student"), []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: called.append(int(inputs[1])))
    torch.testing.assert_close(pipe(PROMPTS, latents=noise, **ONE_STEP).images, expected, **tolerance)
    assert called == [timestep] and pipe.scheduler.init_noise_sigma == 1
    student = load_teacher(str(tmp_path / "student"))
    solved = student.solve(noise, student.encode(PROMPTS), 1, 1.0)
    torch.testing.assert_close(solved, expected, **tolerance)


def test_x0_follows_from_the_table_at_the_timestep(tmp_path):
    """x0 = (z - sigma eps) / alpha, written out."""
    teacher = load_teacher(str(saved(FAMILIES["sd1"], tmp_path / "teacher")))
    z, c = draw_noise([1, 2], teacher.latent_shape), teacher.encode(PROMPTS)
    squared = teacher.scheduler.alphas_cumprod[399]
    with torch.no_grad():
        eps = teacher.unet(z, 399, **c.arguments()).sample
        x0 = OneStepGenerator(teacher.unet, teacher.scheduler, 399)(z, c)
    torch.testing.assert_close(x0, (z - (1 - squared).sqrt() * eps) / squared.sqrt(), atol=1e-6, rtol=1e-6)


# ---- a run ----


@pytest.mark.parametrize("timesteps", [None, [999], [399]])
def test_a_run_draws_exports_and_samples_at_its_timestep(config, tmp_path, tiny_pipeline, timesteps):
    config["model"]["init_args"] |= {"images": 16, "timesteps": timesteps}
    config["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = 3e-2
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    main(["export", str(tmp_path / "run"), str(tmp_path / "student")])
    timestep = 999 if timesteps is None else timesteps[0]
    teacher = load_teacher(str(tiny_pipeline))
    noise = draw_noise([5, 6], teacher.latent_shape)
    with torch.no_grad():
        trained = averaged(tmp_path / "run", teacher, timestep)(noise, teacher.encode(PROMPTS))
        other = averaged(tmp_path / "run", teacher, 700)(noise, teacher.encode(PROMPTS))
    pipe = stock(tmp_path / "student")
    torch.testing.assert_close(pipe(PROMPTS, latents=noise, **ONE_STEP).images, trained, atol=1e-5, rtol=0)
    assert (other - trained).abs().max() > 1e-3
    main(["sample", *PROMPTS, "--student", str(tmp_path / "student"), "--output", str(tmp_path / "out"), "--seed", "5"])
    drawn = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "out").iterdir())])
    decoded = ((teacher.decode(trained).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(drawn - decoded).max() <= 1.5
    settings = stock(tmp_path / "student").scheduler.config
    assert settings.timestep_spacing == "trailing" and (settings.trained_betas is None) == (timestep == 999)


def test_the_grids_last_row_is_the_student_before_training(tiny_pipeline, tmp_path):
    """The teacher's network, called once at the student's timestep."""
    model = Diffusion2GAN(str(tiny_pipeline), MSE(), torch.optim.SGD, images=8, timesteps=[399])
    model.configure_model()
    trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    grid = SampleGrid(["digit 7"], seed=3, steps=2)
    grid.setup(trainer, model, "fit")
    drawn = np.asarray(Image.open(grid.draw(trainer, model))).astype(int)
    teacher = load_teacher(str(tiny_pipeline))
    noise, conditioning = draw_noise([3], teacher.latent_shape), teacher.encode(["digit 7"])

    def grid_of(timestep):
        with torch.no_grad():
            once = teacher.decode(OneStepGenerator(teacher.unet, teacher.scheduler, timestep)(noise, conditioning))
        solved = teacher.decode(teacher.solve(noise, conditioning, 2, 3.0))
        rows = {"teacher, 2 steps": solved, "student, 1 step": once, "teacher, 1 step": once}
        images = {name: to_uint8(images) for name, images in rows.items()}
        return np.asarray(image_grid(images, ["digit 7"])).astype(int)

    assert np.abs(drawn - grid_of(399)).max() <= 1 < np.abs(drawn - grid_of(999)).max()


def test_values_that_cannot_be_used_are_refused_in_one_line(config, tmp_path, capsys):
    path = write(tmp_path / "fit.yaml", config)
    for value, reason in {
        "[399,999]": "timesteps: [399, 999] must have one entry",
        "[]": "timesteps: [] must have one entry",
        "[1000]": "timesteps: 1000 is not between 0 and the teacher's last timestep, 999",
        "[-1]": "timesteps: -1 is not between 0",
    }.items():
        error = refused(capsys, "fit", "-c", path, f"--model.init_args.timesteps={value}")
        assert reason in error and not (tmp_path / "run" / "checkpoints").exists()


def test_a_student_of_a_flow_is_called_at_its_last_timestep(tmp_path):
    """At others no stock pipeline could call it, so it is refused before the training, not by `export`."""
    folder = str(saved(FAMILIES["sd3-without-t5"], tmp_path / "sd3"))
    Diffusion2GAN(folder, MSE(), torch.optim.SGD, images=8, timesteps=[1000]).configure_model()
    with pytest.raises(UserError, match="supports a student at its last timestep only, 1000"):
        Diffusion2GAN(folder, MSE(), torch.optim.SGD, images=8, timesteps=[999]).configure_model()


def test_another_timestep_is_another_experiment(config, tmp_path, capsys):
    """Also where the record is of a version that had no such argument; such a run can be exported."""
    config["model"]["init_args"]["images"] = 8
    path = write(tmp_path / "fit.yaml", config)
    main(["fit", "-c", path])
    record = tmp_path / "run" / "fit.yaml"
    arguments = ["fit", "-c", path, "--model.init_args.images", "16"]
    assert "timesteps was None and is [399] now" in refused(capsys, *arguments, "--model.init_args.timesteps=[399]")
    older = yaml.safe_load(record.read_text())
    for name in ("timesteps", "float32_output"):
        del older["model"]["init_args"][name]
    record.write_text(yaml.safe_dump(older))
    assert "timesteps was None and is [399] now" in refused(capsys, *arguments, "--model.init_args.timesteps=[399]")
    assert "float32_output was False and is True" in refused(
        capsys, *arguments, "--model.init_args.float32_output=true"
    )
    main(["export", str(tmp_path / "run"), str(tmp_path / "student")])
    assert stock(tmp_path / "student").scheduler.config.num_train_timesteps == 1000
    main(arguments)
    assert checkpoint(tmp_path / "run")["images_seen"] == 16


def test_the_timestep_changes_what_is_learnt(config, tmp_path):
    config["model"]["init_args"]["images"] = 16
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    for name, timesteps in {"last": [999], "early": [399]}.items():
        other = named(config, name)
        other["model"]["init_args"]["timesteps"] = timesteps
        main(["fit", "-c", write(tmp_path / f"{name}.yaml", other)])
    weights = [checkpoint(tmp_path / name)["state_dict"] for name in ("run", "last", "early")]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert any(not torch.equal(weight, weights[2][name]) for name, weight in weights[0].items())
