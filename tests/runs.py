"""Runs of the command in tests: their configurations, checkpoints and refusals."""

import copy

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffgan.__main__ import main


def write(path, config):
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
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def refused(capsys, *args):
    """The one line on standard error that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert stop.value.code not in (0, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def curves(folder):
    """Every logged value by curve and images; where a run did a stretch again, all values that were logged."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    values = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            values.setdefault((name, event.step), set()).add(event.value)
    return values
