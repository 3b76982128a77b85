"""Health of a training: its curves, and when it ends a run."""

import copy

import pytest
import torch
from PIL import Image

from diffgan.__main__ import main
from diffgan.cli.plot import smoothed
from tests.runs import (
    checkpoint,
    curves,
    refused,
    write,
)


def health(**changes):
    arguments = {"prompts": ["digit 7"], "noises": 4, "every_images": 16, "patience_images": 32, "steps": 2} | changes
    return {"class_path": "callbacks.training_health.TrainingHealth", "init_args": arguments}


def test_health_is_logged(adversarial_config, tmp_path):
    adversarial_config["trainer"]["callbacks"].append(health())
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    logged = curves(tmp_path / "run")
    steps = [step for name, step in logged if name == "health/diversity"]
    assert sorted(steps) == [16, 32, 48]
    assert all(value > 0 for (name, _), values in logged.items() if name == "health/diversity" for value in values)


def test_plot_draws_the_curves_of_a_run(adversarial_config, tmp_path, capsys):
    adversarial_config["trainer"]["callbacks"].append(health())
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    main(["watch", str(tmp_path / "run"), str(tmp_path / "health.png")])
    assert "health.png: 10 curves" in capsys.readouterr().out
    assert Image.open(tmp_path / "health.png").size[0] == 1200
    assert "no TensorBoard curves" in refused(capsys, "watch", tmp_path / "nothing", tmp_path / "x.png")


def test_smoothing_keeps_means():
    curve = [(i, float(i)) for i in range(1, 241)]
    assert len(smoothed(curve)) == 60 and smoothed(curve)[0] == (2.5, 2.5)
    assert smoothed(curve[:3]) == curve[:3]


@pytest.mark.parametrize(
    ("changes", "reason"), [({"least_diversity": 1e9}, "diversity"), ({"saturated_at": -1.0}, "discriminator")]
)
def test_unhealthy_run_ends_and_names_its_last_good_checkpoint(adversarial_config, tmp_path, capsys, changes, reason):
    adversarial_config["trainer"]["callbacks"].append(health(**{"least_diversity": 0.0} | changes))
    refusal = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", adversarial_config))
    assert reason in refusal and "last.ckpt" in refusal and "32 images" in refusal


def test_last_good_checkpoint_is_kept(adversarial_config, tmp_path, capsys):
    """Healthy for 16 images, then collapsed: `good.ckpt` is a checkpoint from before."""
    healthy = copy.deepcopy(adversarial_config)
    healthy["trainer"]["callbacks"].append(health(least_diversity=0.0, saturated_at=2.0))
    path = write(tmp_path / "fit.yaml", healthy)
    main(["fit", "-c", path, "--model.init_args.images", "16"])
    adversarial_config["trainer"]["callbacks"].append(health(least_diversity=1e9, saturated_at=2.0))
    adversarial_config["model"]["init_args"]["images"] = 80
    assert "good.ckpt" in refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", adversarial_config))
    good = torch.load(tmp_path / "run" / "checkpoints" / "good.ckpt", weights_only=True)
    assert good["images_seen"] <= 16 < checkpoint(tmp_path / "run")["images_seen"]


def test_gradient_that_is_not_finite_ends_the_run(adversarial_config, tmp_path, capsys):
    adversarial_config["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = 1e30
    adversarial_config["trainer"]["callbacks"][1]["init_args"]["every_images"] = 8
    refusal = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", adversarial_config))
    assert "gradient's norm is" in refusal and "last.ckpt" in refusal
