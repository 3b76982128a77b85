"""Part 8: a few steps of every training stage of the miniature's own networks, by `configs/glyphs/gpu`."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.gpu.commands import one_device, run_command, stage_configs
from tests.gpu.parts import Cell, Setting

STEPS = 4
SECONDS = 3.0  # of the denoiser, which trains for a time
STAGES = ("autoencoder", "text_encoder", "denoiser", "latent_vgg", "calibration", "reader")  # each after those it reads


def cells(setting: Setting) -> list[Cell]:
    """One cell for each stage; they share a folder, since the denoiser and the calibration read what others wrote."""
    folder = Path(setting.once("folder", tempfile.TemporaryDirectory).name)
    return [Cell(stage, partial(train, setting, stage, folder)) for stage in STAGES]


def train(setting: Setting, stage: str, folder: Path) -> dict[str, Any]:
    """Train a stage for a few steps, validate and write its result."""
    run_command(["fit", *stage_configs(stage, small(setting, stage, folder), folder)])
    return {}


def small(setting: Setting, stage: str, folder: Path) -> dict[str, Any]:
    """The difference from a stage's configuration: few steps of few images, in a folder; small batches on a CPU."""
    trainer = one_device(setting) | {"max_steps": STEPS, "val_check_interval": STEPS, "limit_val_batches": 2}
    trainer |= {"log_every_n_steps": 1, "num_sanity_val_steps": 0}
    data: dict[str, Any] = {"workers": 2} | setting.choose({}, {"batch_size": 8})
    model: dict[str, Any] = {}
    if stage == "calibration":
        data |= {"train": 48 * STEPS, "validation": 96}
        model |= {"target": str(folder / "latent_lpips.safetensors")}
    else:
        data |= {"train_images": setting.choose(4096, 64), "validation_images": 64}
    if stage == "denoiser":
        model |= {"seconds": SECONDS, "cuda_graph": setting.choose(True, False)}
        trainer |= {"max_steps": -1}
    return {
        "recipe": {"runs": str(folder)},
        "trainer": trainer,
        "model": {"init_args": model},
        "data": {"init_args": data},
    }
