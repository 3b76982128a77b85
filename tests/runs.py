"""Runs of the command in tests: configurations, checkpoints, curves and error messages."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffgan.__main__ import main


def shipped_config(name):
    """A configuration of configs/ with the values that its recipe gives; it may be written elsewhere."""
    file = Path("configs", f"{name}.yaml")
    config = OmegaConf.load(file)
    if isinstance(config.get("recipe"), str):
        config.recipe = OmegaConf.load(file.parent / config.recipe)
    resolved = OmegaConf.to_container(config, resolve=True)
    resolved.pop("recipe", None)
    return resolved


def write(path, config):
    """Write a configuration; returns its path as a string."""
    path.write_text(yaml.safe_dump(config))
    return str(path)


def distillation(teacher, pairs, folder):
    """A distillation of 48 images in batches of 8, whose run is `folder`/run."""
    return {
        "trainer": {
            "max_epochs": -1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": None,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(folder), "name": "run", "version": ""},
            },
            "callbacks": [
                {"class_path": "callbacks.ema.EMA", "init_args": {"half_life_images": 20, "log_every_images": 8}},
                {"class_path": "callbacks.image_checkpoint.ImageCheckpoint", "init_args": {"every_images": 8}},
                {
                    "class_path": "callbacks.sample_grid.SampleGrid",
                    "init_args": {"prompts": ["digit 7", ""], "steps": 2},
                },
                {"class_path": "callbacks.run_report.RunReport"},
            ],
        },
        "model": {
            "class_path": "diffgan.methods.diffusion2gan.Diffusion2GAN",
            "init_args": {
                "teacher": str(teacher),
                "images": 48,
                "warmup_images": 8,
                "regression": {"class_path": "diffgan.losses.regression.PseudoHuber"},
                "generator_optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
            },
        },
        "data": {
            "class_path": "datamodules.latent_pairs.LatentPairs",
            "init_args": {"folder": str(pairs), "batch_size": 8, "validation_pairs": 8},
        },
    }


def named(config, name):
    """The same run in another folder."""
    other = copy.deepcopy(config)
    other["trainer"]["logger"]["init_args"]["name"] = name
    return other


def checkpoint(run):
    """The last checkpoint of a run."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def refused(capsys, *args):
    """The standard error of a command that fails, which has no traceback."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert stop.value.code not in (0, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def curves(folder):
    """Logged values by (curve, images): a set, as a resumed run may have logged a value twice."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    values = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            values.setdefault((name, event.step), set()).add(event.value)
    return values


def adversarial_settings(config):
    """Arguments of `AdversarialTraining` in a configuration."""
    return config["model"]["init_args"]["adversarial"]["init_args"]


def use_large_adam_eps(config):
    """Where two runs are equal but for rounding: with a small eps, Adam amplifies rounding errors of zero gradients."""
    for optimizer in (config["model"]["init_args"]["generator_optimizer"], adversarial_settings(config)["optimizer"]):
        optimizer["init_args"]["eps"] = 1e-3


def assert_same_weights(run, other, exactly=True, **tolerance):
    """The last checkpoints of two runs have the same weights after as many images."""
    first, second = checkpoint(run), checkpoint(other)
    assert first["images_seen"] == second["images_seen"]
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, weight in first["state_dict"].items():
        if exactly:
            assert torch.equal(weight, second["state_dict"][name]), name
        else:
            message = lambda m, n=name: f"{n}: {m}"  # noqa: E731
            torch.testing.assert_close(second["state_dict"][name], weight, msg=message, **tolerance)
