"""The verb `export`: a run's student as a pipeline directory that stock diffusers opens."""

from pathlib import Path
from typing import Any

import torch
import yaml

from diffgan.errors import UserError
from diffgan.nets.generator import OneStepGenerator
from diffgan.pairs import weights_digest
from diffgan.record import digest, write_json
from diffgan.teacher import Teacher

RECORD = "diffgan.json"  # marks a folder as an export, and says of what


def export(run: Path, output: Path) -> None:
    """Write the moving average of a run's generator as a pipeline directory of the teacher's class.

    In stock diffusers: `DiffusionPipeline.from_pretrained(DIR)(prompt, num_inference_steps=1, guidance_scale=1)`.

    Args:
        run: the run's folder: it holds `fit.yaml` and `checkpoints/last.ckpt`.
        output: the pipeline directory; must not exist yet, or be an older export.
    """
    if output.exists() and not (output / RECORD).is_file():
        raise UserError(f"{output}: exists and is no export; choose another output")
    teacher = Teacher.from_pretrained(_teacher_of(run))
    generator = OneStepGenerator(teacher.unet, teacher.scheduler)
    generator.load_state_dict(_average_of(run / "checkpoints" / "last.ckpt", generator, weights_digest(teacher)))
    teacher.as_pipeline().save_pretrained(output)
    write_json({"run": run.name, "checkpoint": digest(run / "checkpoints" / "last.ckpt")}, output / RECORD)
    print(f"{output}: one-step student, num_inference_steps=1, guidance_scale=1")


def _teacher_of(run: Path) -> str:
    try:
        config = yaml.safe_load((run / "fit.yaml").read_text())
        return config["model"]["init_args"]["teacher"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{run}/fit.yaml: no configuration of a distillation run ({error})") from error


def _average_of(path: Path, generator: OneStepGenerator, teacher_digest: str) -> dict[str, Any]:
    """The weights of `generator_ema` in a checkpoint, checked against the network they go into."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights, teacher = checkpoint["state_dict"], checkpoint["teacher_digest"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint; run diffgan fit first") from error
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({type(error).__name__})") from error
    if teacher != teacher_digest:
        raise UserError(f"{path}: was made with another teacher than the run's fit.yaml names")
    prefix = "generator_ema."
    average = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    expected = generator.state_dict()
    for name in sorted(expected.keys() | average.keys()):
        if name not in expected or name not in average or average[name].shape != expected[name].shape:
            raise UserError(f"{path}: the checkpoint is of another model ({name} does not fit)")
    return average
