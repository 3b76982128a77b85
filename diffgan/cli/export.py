"""The verb `export`: a run's student as a pipeline directory that stock diffusers opens."""

import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from torch import Tensor

from diffgan.cli.export_forms import check_single_file, convert, write_single_file
from diffgan.cli.export_record import copy_samples, describe
from diffgan.errors import UserError
from diffgan.evaluation.provenance import write_json
from diffgan.methods.checks import only_timestep
from diffgan.nets.generator import OneStepGenerator
from diffgan.nets.lora import LoRA, add_adapters, merge_adapters, save_adapters
from diffgan.storage.digests import digest
from diffgan.storage.folders import replace_folder
from diffgan.storage.tensor_files import first_not_finite
from diffgan.teachers.base import Teacher
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.earlier import remedy_for
from diffgan.teachers.pipeline_files import RECORD, save_pipeline, without_path
from diffgan.teachers.registry import checked_size, load_teacher
from diffgan.training.checkpoints import BEST, GOOD, LAST, PREVIOUS, find_damage

SCHEDULER = "scheduler"  # folder of a pipeline's component
CHECKPOINTS = {"last": LAST, "previous": PREVIOUS, "best": BEST, "good": GOOD}


class Student(NamedTuple):
    """What a run's configuration says of its student.

    teacher: path or hub id.  timestep: where the student is called; None: the last one.  size: [height, width] of
    images; None: the usual one.  lora: its adapters; None: all weights were trained.
    """

    teacher: str
    timestep: int | None
    size: list[int] | None
    lora: LoRA | None


def export(
    run: Path,
    output: Path,
    checkpoint: str = "last",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    single_file: Path | None = None,
    lora: bool = False,
) -> None:
    """Write the moving average of a run's generator as a pipeline directory of the teacher's class.

    In stock diffusers: `DiffusionPipeline.from_pretrained(DIR)(prompt, num_inference_steps=1, guidance_scale=1)`, with
    `height` and `width` if the student has another size than the model's usual one.

    Args:
        run: the run's folder: it holds `fit.yaml` and `checkpoints/`.
        output: the pipeline directory; must not exist yet, or be an older export, which is replaced when the new one is
            complete.
        checkpoint: "last", "previous", "best" (see ImageCheckpoint's `monitor`) or "good" (see TrainingHealth).
        dtype: of the stored weights; what it changes in x^ is measured, printed and recorded.
        single_file: also all weights in one .safetensors file in the original layout of SD1.x or SDXL, for programs
            other than diffusers.
        lora: write the run's adapters alone, and the scheduler, for stock diffusers; else they are merged.
    """
    if single_file is not None:
        check_single_file(single_file, output)
    config = _configuration(run)
    student = _student(run, config)
    if lora:
        _check_lora(run, student, dtype, single_file)
    file = _checkpoint_of(run, checkpoint)
    with replace_folder(output, RECORD) as folder:
        teacher = _finite_teacher(student)
        checkpoint_digest, images_seen = _load_student(teacher, file, student.lora)
        record = {"run": run.name, "checkpoint": checkpoint_digest, "images_seen": images_seen}
        record |= {} if student.size is None else {"size": student.size}
        record |= describe(run, config, teacher, checkpoint_digest)
        if lora:
            _save_adapters(teacher, student, folder)
        else:
            _save_student(teacher, student, dtype, folder, record)
        copy_samples(run, images_seen, folder)
        write_json(record, folder / RECORD)
        if single_file is not None:
            write_single_file(teacher, single_file, record)
    _report(output, record, single_file, type(teacher.scheduler).__name__ if lora else None)


def _finite_teacher(student: Student) -> Teacher:
    """A student's teacher, at the student's size."""
    teacher = load_teacher(student.teacher, size=student.size)
    if (name := first_not_finite(teacher.state_dict())) is not None:
        raise UserError(f"teacher {student.teacher}: {name} is not finite; restore the files of this teacher")
    return teacher


def _check_lora(run: Path, student: Student, dtype: str, single_file: Path | None) -> None:
    """Raise a UserError if a run has no adapters to write, or an option is for whole pipelines."""
    if student.lora is None:
        raise UserError(f"{run}: all weights were trained, there are no adapters; leave --lora out")
    if dtype != "float32" or single_file is not None:
        raise UserError("export: --dtype and --single_file are for whole pipelines; leave them or --lora out")


def _save_student(teacher: Teacher, student: Student, dtype: str, folder: Path, record: dict[str, Any]) -> None:
    """Write the pipeline, with adapters merged and the weights in `dtype`; `record` gains what that changed."""
    if student.lora is not None:
        merge_adapters(teacher.denoiser)
    _end_schedule(teacher, student)
    if dtype != "float32":
        record |= convert(teacher, getattr(torch, dtype))
    _save(teacher, folder)


def _save_adapters(teacher: Teacher, student: Student, folder: Path) -> None:
    """Write the adapters, and the schedule on which one step calls the student at its timestep."""
    save_adapters(teacher.denoiser, teacher.pipeline_class, folder)
    _end_schedule(teacher, student)
    teacher.scheduler.save_pretrained(folder / SCHEDULER)


def _end_schedule(teacher: Teacher, student: Student) -> None:
    """Give a teacher the schedule that ends at the student's timestep."""
    last = teacher.schedule.last_timestep
    teacher.schedule = teacher.schedule.ending_at(last if student.timestep is None else student.timestep)


def _report(output: Path, record: dict[str, Any], single_file: Path | None, scheduler: str | None) -> None:
    """Print what was written.  scheduler: class of the one beside adapters; None: a whole pipeline."""
    sides = ", height={}, width={}".format(*record["size"]) if "size" in record else ""
    kind = "one-step student" if scheduler is None else "adapters of a one-step student"
    print(f"{output}: {kind}, num_inference_steps=1, guidance_scale=1{sides}")
    if scheduler is not None:
        print(f"its scheduler: {scheduler}.from_pretrained('{output}', subfolder='{SCHEDULER}')")
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


def _student(run: Path, config: dict[str, Any]) -> Student:
    """What the run's configuration says of its student; entries that older runs lack have their defaults."""
    model = config["model"]["init_args"]
    try:
        lora = None if model.get("lora") is None else LoRA(**model["lora"])
        return Student(model["teacher"], only_timestep(model.get("timesteps")), checked_size(model.get("size")), lora)
    except TypeError as error:
        raise UserError(f"{run}/fit.yaml: no configuration of a distillation run ({error})") from error


def _checkpoint_of(run: Path, name: str) -> Path:
    """The file of one of a run's checkpoints; raises UserError for an unknown name."""
    if name not in CHECKPOINTS:
        raise UserError(f"export: --checkpoint {name}: choose one of {', '.join(CHECKPOINTS)}")
    return run / "checkpoints" / CHECKPOINTS[name]


def _load_student(teacher: Teacher, path: Path, lora: LoRA | None) -> tuple[str, int | None]:
    """Load the averaged generator of a checkpoint into the teacher's network, or its adapters beside its weights.

    Returns:
        The checkpoint's digest, and the images that it has seen.

    Raises:
        UserError: the checkpoint is missing, damaged, of another teacher or model, or not finite, or a running fit
            replaced it while it was read.
    """
    before = _version(path)
    if (reason := find_damage(path)) is not None:
        raise UserError(f"{path}: the checkpoint is broken ({reason}){_offer(path, 'previous.ckpt', GOOD)}")
    teacher_digest, base = weights_digest(teacher), set()
    if lora is not None:
        base = set(map(id, teacher.denoiser.state_dict(keep_vars=True).values()))
        add_adapters(teacher.denoiser, lora)
    generator = OneStepGenerator(teacher.denoiser, teacher.scheduler)
    own = {name: weight for name, weight in generator.state_dict(keep_vars=True).items() if id(weight) not in base}
    average, images_seen = _average_of(path, own, teacher_digest)
    generator.load_state_dict(average, strict=lora is None)
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


def _average_of(path: Path, expected: dict[str, Tensor], teacher_digest: str) -> tuple[dict[str, Any], int | None]:
    """The weights of `generator_ema` in a checkpoint, checked against those that they replace, and its images."""
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
    for name in sorted(expected.keys() | average.keys()):
        if name not in expected or name not in average or average[name].shape != expected[name].shape:
            raise UserError(f"{path}: the checkpoint is of another model ({name} does not fit)")
    if (name := first_not_finite(average)) is not None:
        offer = _offer(path, GOOD, PREVIOUS)
        raise UserError(f"{path}: {prefix}{name} is not finite, the run has diverged{offer}")
    return average, checkpoint.get("images_seen")


def _offer(path: Path, *names: str) -> str:
    """How to resume from the first of these checkpoints that is there."""
    for earlier in (path.with_name(name) for name in names):
        if earlier.is_file():
            argument = "previous" if earlier.name == PREVIOUS else earlier
            return f"; resume from the earlier {earlier.name}: diffgan fit --ckpt_path {argument}"
    return "; train again in another folder"
