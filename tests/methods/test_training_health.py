"""Health of a training: its curves, and when it ends a run."""

import copy

import pytest
import torch
from PIL import Image

from diffgan.__main__ import main
from diffgan.cli.plot import smoothed
from diffgan.losses.regression import MSE
from diffgan.methods.optimization import skip_unless_finite
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
    assert "health.png: 12 curves" in capsys.readouterr().out
    assert Image.open(tmp_path / "health.png").size[0] == 1200
    assert "no TensorBoard curves" in refused(capsys, "watch", tmp_path / "nothing", tmp_path / "x.png")


def test_smoothing_keeps_means():
    curve = [(i, float(i)) for i in range(1, 241)]
    assert len(smoothed(curve)) == 60 and smoothed(curve)[0] == (2.5, 2.5)
    assert smoothed(curve[:3]) == curve[:3]


@pytest.mark.parametrize(
    ("changes", "reason"), [({"least_diversity": 1e9}, "diversity"), ({"saturated_at": -1.0}, "discriminator")]
)
def test_unhealthy_run_ends_on_request_and_names_its_last_good_checkpoint(
    adversarial_config, tmp_path, capsys, changes, reason
):
    adversarial_config["trainer"]["callbacks"].append(health(**{"least_diversity": 0.0, "stop": True} | changes))
    refusal = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", adversarial_config))
    assert reason in refusal and "last.ckpt" in refusal and "32 images" in refusal


def test_unhealthy_run_is_warned_of_once(adversarial_config, tmp_path, capsys):
    adversarial_config["trainer"]["callbacks"].append(health(least_diversity=1e9, patience_images=16))
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning: after" in line]
    assert lines == ["diffgan: warning: after 32 images: the student's diversity has collapsed: for 16 images now"]
    assert checkpoint(tmp_path / "run")["images_seen"] == 48


def test_last_good_checkpoint_is_kept(adversarial_config, tmp_path, capsys):
    """Healthy for 16 images, then collapsed: `good.ckpt` is a checkpoint from before."""
    healthy = copy.deepcopy(adversarial_config)
    healthy["trainer"]["callbacks"].append(health(least_diversity=0.0, saturated_at=2.0))
    path = write(tmp_path / "fit.yaml", healthy)
    main(["fit", "-c", path, "--model.init_args.images", "16"])
    adversarial_config["trainer"]["callbacks"].append(health(least_diversity=1e9, saturated_at=2.0, stop=True))
    adversarial_config["model"]["init_args"]["images"] = 80
    assert "good.ckpt" in refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", adversarial_config))
    good = torch.load(tmp_path / "run" / "checkpoints" / "good.ckpt", weights_only=True)
    assert good["images_seen"] <= 16 < checkpoint(tmp_path / "run")["images_seen"]


def test_gradient_that_is_not_finite_ends_the_run(adversarial_config, tmp_path, capsys):
    adversarial_config["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = 1e30
    adversarial_config["trainer"]["callbacks"][1]["init_args"]["every_images"] = 8
    refusal = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", adversarial_config))
    assert "gradient's norm was" in refusal and "last.ckpt" in refusal


@pytest.mark.parametrize("fused", [True, False])
def test_step_of_a_gradient_that_is_not_finite_is_skipped(fused):
    """Of two steps the second has a gradient with NaN: the weights stay finite; fused optimizers change nothing."""
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    for gradient in (torch.ones(4), torch.tensor([1.0, float("nan"), 1.0, 1.0])):
        before, weight.grad = weight.detach().clone(), gradient
        skip_unless_finite(optimizer, [weight.grad], gradient.norm())
        optimizer.step()
    assert weight.isfinite().all() and optimizer.state[weight]["exp_avg"].isfinite().all()
    if fused:
        assert torch.equal(weight, before) and optimizer.state[weight]["step"] == 1
    weight.grad = torch.ones(4)  # and the next step is taken again
    skip_unless_finite(optimizer, [weight.grad], weight.grad.norm())
    optimizer.step()
    assert not torch.equal(weight, before)


def test_no_checkpoint_is_written_after_a_gradient_that_is_not_finite(config, tmp_path, capsys):
    """The batch that ends the run is that of the next checkpoint, if the norms are read no earlier."""
    config["model"]["init_args"]["images"] = 400
    config["model"]["init_args"]["regression"] = {"class_path": "tests.methods.test_training_health.NotANumber"}
    config["trainer"]["callbacks"][1]["init_args"]["every_images"] = 16
    refusal = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", config))
    assert "stopped after 48 images: g: the gradient's norm was nan after 40" in refusal
    weights = checkpoint(tmp_path / "run")
    assert weights["images_seen"] == 32 and all(w.isfinite().all() for w in weights["state_dict"].values())


class NotANumber(MSE):
    """NaN at its sixth call in training, after 40 images of batches of 8."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, generated, target, generator=None):
        distance = super().forward(generated, target, generator)
        if not generated.requires_grad:
            return distance
        self.calls += 1
        return distance * float("nan") if self.calls == 6 else distance
