"""While Lightning calls `configure_model`, torch's default device is the GPU: what is built there must work.

The default device of these tests is `meta`, whose tensors have no values: anything built on it by mistake fails.
"""

import lightning.pytorch as pl
import pytest
import torch

from callbacks.sample_grid import SampleGrid
from callbacks.training_health import TrainingHealth
from diffgan.__main__ import main
from diffgan.losses.regression import MSE
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher
from tests.pipelines import FAMILIES, saved
from tests.runs import write

META_AS_DEFAULT = {"class_path": "tests.devices.MetaAsDefault"}


@pytest.mark.parametrize("family", ["miniature", "sd1", "sdxl"])
def test_a_teacher_and_its_solvers_are_built_on_the_cpu(family, tmp_path):
    path = saved(FAMILIES[family], tmp_path / family)
    with torch.device("meta"):
        teacher = load_teacher(str(path))
        for name in ("DDIMScheduler", "DPMSolverMultistepScheduler"):
            assert teacher.solver(2, name).alphas_cumprod.device.type == "cpu"
    assert {tensor.device.type for tensor in teacher.state_dict().values()} == {"cpu"}
    assert teacher.scheduler.alphas_cumprod.device.type == "cpu"


def test_callbacks_draw_with_a_model_built_under_another_default_device(tiny_pipeline, tmp_path):
    model = Diffusion2GAN(str(tiny_pipeline), MSE(), torch.optim.SGD, images=8)
    with torch.device("meta"):
        model.configure_model()
        grid, health = SampleGrid(["digit 7"], steps=2), TrainingHealth(["digit 7"], noises=2, steps=2)
        trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
        for callback in (grid, health):
            callback.setup(trainer, model, "fit")
    assert grid.draw(trainer, model).is_file()
    assert 0.1 < health.diversity(model) < 10
    noise = draw_noise([0], model.teacher.latent_shape)
    assert model.generator_ema(noise, model.teacher.encode(["digit 7"])).isfinite().all()


def test_pairs_training_and_test_run_under_another_default_device(config, tmp_path):
    """Fit with the discriminator, its callbacks, and test run as they do with the CPU as default device."""
    config["trainer"]["strategy"] = META_AS_DEFAULT
    config["trainer"]["callbacks"].append(
        {
            "class_path": "callbacks.training_health.TrainingHealth",
            "init_args": {"prompts": ["digit 7"], "noises": 2, "every_images": 16, "steps": 2},
        }
    )
    config["model"]["init_args"]["adversarial"] = {
        "class_path": "diffgan.methods.adversarial.AdversarialTraining",
        "init_args": {
            "discriminator": {"class_path": "diffgan.nets.discriminator.MultiScaleDiscriminator"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            "r1_every": 2,
        },
    }
    file = write(tmp_path / "fit.yaml", config)
    main(["fit", "-c", file])
    main(["test", "-c", file])
    assert (tmp_path / "run" / "metrics.json").is_file()
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())
