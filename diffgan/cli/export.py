"""The verb `export`: a run's student as a pipeline directory that stock diffusers opens."""

import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from diffgan.cli.export_forms import check_single_file, convert, write_single_file
from diffgan.cli.export_record import copy_samples, describe
from diffgan.errors import UserError
from diffgan.evaluation.provenance import write_json
from diffgan.methods.checks import only_timestep
from diffgan.nets.generator import OneStepGenerator
from diffgan.storage.digests import digest
from diffgan.storage.folders import replace_folder
from diffgan.teachers.base import Teacher
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.earlier import remedy_for
from diffgan.teachers.pipeline_files import save_pipeline, without_path
from diffgan.teachers.registry import load_teacher
from diffgan.training.checkpoints import BEST, GOOD, LAST, PREVIOUS, find_damage

CHECKPOINTS = {"last": LAST, "previous": PREVIOUS, "best": BEST, "good": GOOD}
RECORD = "diffgan.json"  # marks a folder as an export and names the run and checkpoint it was made from


def export(
    run: Path,
    output: Path,
    checkpoint: str = "last",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    single_file: Path | None = None,
) -> None:
    """Write the moving average of a run's generator as a pipeline directory of the teacher's class.

    In stock diffusers: `DiffusionPipeline.from_pretrained(DIR)(prompt, num_inference_steps=1, guidance_scale=1)`.

    Args:
        run: the run's folder: it holds `fit.yaml` and `checkpoints/`.
        output: the pipeline directory; must not exist yet, or be an older export, which is replaced when the new one is
            complete.
        checkpoint: "last", "previous", "best" (see ImageCheckpoint's `monitor`) or "good" (see TrainingHealth).
        dtype: of the stored weights; what it changes in x^ is measured, printed and recorded.
        single_file: also all weights in one .safetensors file in the original layout of SD1.x or SDXL, for programs
            other than diffusers.
    """
    if single_file is not None:
        check_single_file(single_file, output)
    config = _configuration(run)
    path, timestep = config["model"]["init_args"]["teacher"], _timestep(run, config)
    file = _checkpoint_of(run, checkpoint)
    with replace_folder(output, RECORD) as folder:
        teacher = load_teacher(path)
        if (name := _first_not_finite(teacher.state_dict())) is not None:
            raise UserError(f"teacher {path}: {name} is not finite; restore the files of this teacher")
        checkpoint_digest, images_seen = _load_student(teacher, file)
        record = {"run": run.name, "checkpoint": checkpoint_digest, "images_seen": images_seen}
        record |= describe(run, config, teacher, checkpoint_digest)
        if timestep is not None:
            teacher.schedule = teacher.schedule.ending_at(timestep)
        if dtype != "float32":
            record |= convert(teacher, getattr(torch, dtype))
        _save(teacher, folder)
        copy_samples(run, images_seen, folder)
        write_json(record, folder / RECORD)
        if single_file is not None:
            write_single_file(teacher, single_file, record)
    _report(output, record, single_file)


def _report(output: Path, record: dict[str, Any], single_file: Path | None) -> None:
    print(f"{output}: one-step student, num_inference_steps=1, guidance_scale=1")
    if (difference := record.get("difference_to_float32")) is not None:
        print(
            f"{record['dtype']}: x^ differs from float32 by at most {difference['largest']:.2e} "
            f"(largest |x^| {difference['largest_value']:.2f}, {difference['images']} images)"
        )
    if single_file is not None:
        print(f"{single_file}: the same weights in the original layout")


def _save(teacher: Teacher, folder: Path) -> None:
    """Write the teacher's components as a pipeline directory.

    Raises:
        OSError: the file system does not allow it (disk full, no permission).
    """
    try:
        save_pipeline(teacher.as_pipeline(), folder)
        for config in folder.glob("*/config.json"):
            config.write_bytes(without_path(config.read_bytes()))
    except Exception as error:  # safetensors and tokenizers raise their own types, with the number in the message
        if isinstance(error, OSError) or (match := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        number = int(match[1])
        raise OSError(number, os.strerror(number)) from error


def _configuration(run: Path) -> dict[str, Any]:
    """The run's configuration; raises UserError if it is none of a distillation."""
    try:
        config = yaml.safe_load((run / "fit.yaml").read_text())
        if not isinstance(config["model"]["init_args"]["teacher"], str):
            raise TypeError("teacher is no path")
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{run}/fit.yaml: no configuration of a distillation run ({error})") from error
    return config


def _timestep(run: Path, config: dict[str, Any]) -> int | None:
    """The student's timestep as the run's configuration names it; None: the last one."""
    try:
        return only_timestep(config["model"]["init_args"].get("timesteps"))  # runs of 0.2 have none
    except TypeError as error:
        raise UserError(f"{run}/fit.yaml: no configuration of a distillation run ({error})") from error


def _checkpoint_of(run: Path, name: str) -> Path:
    """The file of one of a run's checkpoints; raises UserError for an unknown name."""
    if name not in CHECKPOINTS:
        raise UserError(f"export: --checkpoint {name}: choose one of {', '.join(CHECKPOINTS)}")
    return run / "checkpoints" / CHECKPOINTS[name]


def _load_student(teacher: Teacher, path: Path) -> tuple[str, int | None]:
    """Load the averaged generator of a checkpoint into the teacher's network.

    Returns:
        The checkpoint's digest, and the images that it has seen.

    Raises:
        UserError: the checkpoint is missing, damaged, of another teacher or model, or not finite, or a running fit
            replaced it while it was read.
    """
    before = _version(path)
    if (reason := find_damage(path)) is not None:
        raise UserError(f"{path}: the checkpoint is broken ({reason}){_offer(path, 'previous.ckpt', GOOD)}")
    generator = OneStepGenerator(teacher.denoiser, teacher.scheduler)
    average, images_seen = _average_of(path, generator, weights_digest(teacher))
    generator.load_state_dict(average)
    checkpoint_digest = digest(path)
    if _version(path) != before:
        raise UserError(f"{path}: was replaced while it was read; run the same command again")
    return checkpoint_digest, images_seen


def _version(path: Path) -> tuple[int, ...]:
    """Numbers that change when another file takes this one's name."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: no such checkpoint ({error.strerror}); run diffgan fit first") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _average_of(path: Path, generator: OneStepGenerator, teacher_digest: str) -> tuple[dict[str, Any], int | None]:
    """The weights of `generator_ema` in a checkpoint, checked against the network they go into, and its images."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights, teacher = checkpoint["state_dict"], checkpoint["teacher_digest"]
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({type(error).__name__})") from error
    if teacher != teacher_digest:
        remedy = remedy_for(teacher, "give that teacher's present path there")
        raise UserError(f"{path}: was made with another teacher than the run's fit.yaml names; {remedy}")
    prefix = "generator_ema."
    average = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    expected = generator.state_dict()
    for name in sorted(expected.keys() | average.keys()):
        if name not in expected or name not in average or average[name].shape != expected[name].shape:
            raise UserError(f"{path}: the checkpoint is of another model ({name} does not fit)")
    if (name := _first_not_finite(average)) is not None:
        offer = _offer(path, GOOD, PREVIOUS)
        raise UserError(f"{path}: {prefix}{name} is not finite, the run has diverged{offer}")
    return average, checkpoint.get("images_seen")


def _first_not_finite(weights: dict[str, Tensor]) -> str | None:
    """Name of the first weight that holds NaN or infinity."""
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)


def _offer(path: Path, *names: str) -> str:
    """How to resume from the first of these checkpoints that is there."""
    for earlier in (path.with_name(name) for name in names):
        if earlier.is_file():
            argument = "previous" if earlier.name == PREVIOUS else earlier
            return f"; resume from the earlier {earlier.name}: diffgan fit --ckpt_path {argument}"
    return "; train again in another folder"
