"""Distillation through the command: training, resuming, checkpoints, export."""

import copy
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from diffgan.__main__ import main
from diffgan.images import image_grid, to_uint8
from diffgan.nets.generator import OneStepGenerator
from diffgan.noise import draw_noise
from diffgan.storage.digests import digest
from diffgan.teachers.registry import load_teacher
from tests.processes import run_on_two_processes, start
from tests.runs import checkpoint, curves, named, refused, write


def test_fit_trains_reports_and_draws(config, tmp_path):
    config["model"]["init_args"]["images"] = 160
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    run = tmp_path / "run"
    report = json.loads((run / "metrics.json").read_text())
    assert report["images_seen"] == 160  # validated when the budget ended, too
    sheets = sorted((run / "samples").glob("*.png"))
    assert len(sheets) == 7
    assert report["config"]["model"]["init_args"]["images"] == 160
    untrained = named(config, "still")
    untrained["model"]["init_args"]["images"] = 24
    untrained["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = 0.0
    main(["fit", "-c", write(tmp_path / "still.yaml", untrained)])
    before = json.loads((tmp_path / "still" / "metrics.json").read_text())
    assert report["metrics"]["validation/regression"] < 0.9 * before["metrics"]["validation/regression"]


@pytest.mark.parametrize(("every", "points"), [(2, [16, 32, 48]), (0, [])])
def test_curves_have_a_point_every_log_every_n_steps_batches(config, tmp_path, every, points):
    """The axis counts images; the report has the newest loss at any interval."""
    config["trainer"]["log_every_n_steps"] = every
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    logged = curves(tmp_path / "run")
    for name in ("g/regression", "g/gradient_norm"):
        assert sorted(images for curve, images in logged if curve == name) == points
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["metrics"]["g/regression"] > 0


@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_gradients_above_the_limit_are_clipped_to_it(config, tmp_path, tiny_pipeline, limit):
    """One step of SGD with rate 1 is as long as the gradient, or as the limit."""
    plain = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
    config["model"]["init_args"] |= {"images": 8, "warmup_images": 1, "clip_norm": limit, "generator_optimizer": plain}
    config["trainer"]["log_every_n_steps"] = 1
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    weights = checkpoint(tmp_path / "run")["state_dict"]
    before = load_teacher(str(tiny_pipeline)).unet.named_parameters()
    moved = sum((weights[f"generator.unet.{name}"] - value.detach()).square().sum() for name, value in before).sqrt()
    norm = curves(tmp_path / "run")["g/gradient_norm", 8].pop()
    assert moved.item() == pytest.approx(min(norm, limit), rel=1e-2) and norm > 1e-2


@pytest.mark.parametrize("stops", [[24], [32], [32, 64], [16, 32, 40]])
def test_interrupted_fit_equals_the_uninterrupted_one(config, tmp_path, stops):
    """Within an epoch of 32 pairs and at its end, once or several times."""
    config["model"]["init_args"]["images"] = 72
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    whole = checkpoint(tmp_path / "run")
    broken = named(config, "broken")
    for images in (*stops, 72):  # warm-up is over, so the schedule is the same
        broken["model"]["init_args"]["images"] = images
        main(["fit", "-c", write(tmp_path / "broken.yaml", broken)])
    resumed = checkpoint(tmp_path / "broken")
    assert resumed["images_seen"] == whole["images_seen"] == 72
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name


def test_another_experiment_in_the_same_folder_is_refused(config, tmp_path, capsys):
    path = write(tmp_path / "fit.yaml", config)
    main(["fit", "-c", path])
    config["model"]["init_args"]["regression"]["class_path"] = "diffgan.losses.regression.MSE"
    other = write(tmp_path / "other.yaml", config)
    refusal = refused(capsys, "fit", "-c", other)
    assert "model.regression.class_path was 'diffgan.losses.regression.PseudoHuber'" in refusal.replace(
        "init_args.", ""
    )
    assert "PseudoHuber" in (tmp_path / "run" / "fit.yaml").read_text()
    main(["fit", "-c", other, "--ckpt_path", "last", "--model.init_args.images", "56"])
    assert checkpoint(tmp_path / "run")["images_seen"] == 56


def test_two_processes_train_as_one(config, tmp_path):
    """The weights are those of one process within rounding: same global batches, averaged gradients."""
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    together = named(config, "together")
    together["trainer"] |= {"devices": 2, "strategy": "ddp"}
    assert run_on_two_processes(["fit", "-c", write(tmp_path / "together.yaml", together)]) == [0, 0]
    one, two = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "together")
    assert one["images_seen"] == two["images_seen"] == 48
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, atol=2e-4, rtol=1e-3)
    held_out = [json.loads((tmp_path / n / "metrics.json").read_text())["metrics"] for n in ("run", "together")]
    assert held_out[1]["validation/mse"] == pytest.approx(held_out[0]["validation/mse"], rel=1e-3)


def test_finished_fit_changes_nothing(config, tmp_path):
    for _ in range(2):
        main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
        weights = checkpoint(tmp_path / "run")["state_dict"]
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    again = checkpoint(tmp_path / "run")
    assert again["images_seen"] == 48
    assert all(torch.equal(weight, again["state_dict"][name]) for name, weight in weights.items())


def test_checkpoint_holds_the_trained_networks_only(config, tmp_path):
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    kept = checkpoint(tmp_path / "run")
    assert {name.split(".")[0] for name in kept["state_dict"]} == {"generator", "generator_ema"}


@pytest.mark.parametrize(("half_life", "kept"), [(0, 0.0), (5, 2 ** (-8 / 5)), (1000, 2 ** (-8 / 10))])
def test_moving_average_has_its_half_life(config, tmp_path, half_life, kept):
    """From 40 images to 48; the half-life is at most a quarter of the images seen, here 10."""
    config["trainer"]["callbacks"][0]["init_args"]["half_life_images"] = half_life
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    now = checkpoint(tmp_path / "run")["state_dict"]
    before = torch.load(tmp_path / "run" / "checkpoints" / "previous.ckpt", weights_only=True)["state_dict"]
    for name in [n for n in now if n.startswith("generator_ema.unet")]:
        value = now[name.replace("generator_ema", "generator")]
        torch.testing.assert_close(now[name], kept * before[name] + (1 - kept) * value, atol=1e-6, rtol=1e-5)


def test_sample_grid_and_report_match_the_run(config, tmp_path, tiny_pipeline):
    path = write(tmp_path / "fit.yaml", config)
    main(["fit", "-c", path])
    main(["test", "-c", path])
    run, prompts = tmp_path / "run", ["digit 7", ""]
    teacher = load_teacher(str(tiny_pipeline))
    noise = draw_noise(range(3_500_000_000, 3_500_000_002), teacher.latent_shape)
    generator = averaged(run, teacher)
    with torch.no_grad():
        solved = teacher.decode(teacher.solve(noise, teacher.encode(prompts), 2, 3.0))
        student = teacher.decode(generator(noise, teacher.encode(prompts)))
        untrained = teacher.decode(OneStepGenerator(teacher.unet, teacher.scheduler)(noise, teacher.encode(prompts)))
    rows = {"teacher, 2 steps": solved, "student, 1 step": student, "teacher, 1 step": untrained}
    rows = {name: to_uint8(images) for name, images in rows.items()}
    expected = np.asarray(image_grid(rows, prompts)).astype(int)
    drawn = np.asarray(Image.open(run / "samples" / "images-00000048.png")).astype(int)
    assert np.abs(drawn - expected).max() <= 1 and drawn.std() > 10
    report = json.loads((run / "metrics.json").read_text())
    assert report["stage"] == "test" and report["images_seen"] == 48
    assert report["checkpoint"]["digest"] == digest(run / "checkpoints" / "last.ckpt")


def averaged(run, teacher):
    """The averaged generator of a run's last checkpoint."""
    generator = OneStepGenerator(copy.deepcopy(teacher.unet), teacher.scheduler)
    weights = checkpoint(run)["state_dict"]
    prefix = "generator_ema."
    generator.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)})
    return generator


def test_export_opens_in_diffusers_and_equals_the_generator(config, tmp_path, tiny_pipeline):
    config["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = 3e-2
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    main(["export", str(tmp_path / "run"), str(tmp_path / "student")])
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "student", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    teacher = load_teacher(str(tiny_pipeline))
    noise = draw_noise([5, 6], teacher.latent_shape)
    prompts = ["digit 7", "a bold capital A"]
    stock = pipe(prompts, num_inference_steps=1, guidance_scale=1.0, latents=noise, output_type="latent").images
    with torch.no_grad():
        before = OneStepGenerator(teacher.unet, teacher.scheduler)(noise, teacher.encode(prompts))
        trained = averaged(tmp_path / "run", teacher)(noise, teacher.encode(prompts))
    torch.testing.assert_close(stock, trained, atol=1e-5, rtol=0)
    assert (before - trained).abs().max() > 1e-3  # the average has moved away from the teacher


def test_sample_writes_images(tiny_pipeline, tmp_path):
    main(["sample", "digit 7", "a / b", "--student", str(tiny_pipeline), "--output", str(tmp_path / "out")])
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["000-digit-7.png", "001-a-b.png"]


def test_progress_is_drawn_from_the_first_batch_on(config, tmp_path, monkeypatch, capfd):
    """Every line shows the images so far and the loss."""
    monkeypatch.setattr("callbacks.progress.LINE_SECONDS", 0)
    config["trainer"]["enable_progress_bar"] = True
    config["trainer"]["callbacks"].append({"class_path": "callbacks.progress.ImageProgress"})
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    error = capfd.readouterr().err
    assert "distilling: 8/48 images" in error and "distilling: 48/48 images" in error and ", loss " in error


def test_pairs_of_another_teacher_are_refused(config, other_pipeline, tmp_path, capsys):
    config["model"]["init_args"]["teacher"] = str(other_pipeline)
    assert "another teacher" in refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", config))


def test_user_mistakes_are_one_line(config, tmp_path, capsys):
    good = write(tmp_path / "fit.yaml", config)
    assert "no_such_key" in refused(capsys, "fit", "-c", good, "--model.init_args.no_such_key", "1")
    assert "model_index.json" in refused(capsys, "fit", "-c", good, "--model.init_args.teacher", tmp_path)
    assert "16-true" in refused(capsys, "fit", "-c", good, "--trainer.precision", "16-true")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert "fit.yaml" in refused(capsys, "export", tmp_path / "nothing", tmp_path / "o")
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "g/regression"}}
    config["trainer"]["callbacks"].append(stopping)
    monitored = refused(capsys, "fit", "-c", write(tmp_path / "monitored.yaml", config))
    assert "EarlyStopping: monitor g/regression" in monitored and "validation/mse" in monitored


def test_checkpoint_of_another_model_is_refused(config, tmp_path, capsys):
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    other = torch.load(path, weights_only=True)
    name = next(n for n in other["state_dict"] if n.endswith("conv_in.weight"))
    other["state_dict"][name] = other["state_dict"][name][:4]
    other["optimizer_states"] = []  # they would not fit the weight either
    torch.save(other, tmp_path / "other.ckpt")
    assert "another model" in refused(
        capsys, "fit", "-c", tmp_path / "fit.yaml", "--ckpt_path", tmp_path / "other.ckpt"
    )
    assert torch.load(path, weights_only=True)["images_seen"] == 48


def test_killed_fit_resumes_from_its_last_checkpoint(config, tmp_path):
    """After SIGKILL at any moment the same command ends with the weights of the uninterrupted run, to the bit."""
    config["model"]["init_args"]["images"] = 240
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    whole = checkpoint(tmp_path / "run")
    path = write(tmp_path / "killed.yaml", named(config, "killed"))
    child = start(["fit", "-c", path])
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    while not last.exists() and child.is_alive():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert 0 < checkpoint(tmp_path / "killed")["images_seen"] < 240
    main(["fit", "-c", path])
    resumed = checkpoint(tmp_path / "killed")
    assert resumed["images_seen"] == 240
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name
