"""Teachers by path: the pipeline class that `model_index.json` names decides the family.

A new family is one file in this package and one line in `FAMILIES`; README.md in this folder says what the file has.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from diffgan.errors import UserError, first_line
from diffgan.storage.embedded import EMBEDDED, embedded
from diffgan.storage.json_files import read_object
from diffgan.teachers.base import Teacher
from diffgan.teachers.flux import Flux
from diffgan.teachers.pipeline_checks import check_components, component_classes, is_absent
from diffgan.teachers.pipeline_files import ADAPTERS, RECORD
from diffgan.teachers.pixart_sigma import PixArtSigma
from diffgan.teachers.stable_diffusion import StableDiffusion
from diffgan.teachers.stable_diffusion_3 import StableDiffusion3
from diffgan.teachers.stable_diffusion_xl import StableDiffusionXL

FAMILIES: dict[str, type[Teacher]] = {  # by pipeline class
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "PixArtSigmaPipeline": PixArtSigma,
    "FluxPipeline": Flux,
}


def load_teacher(path: str, dtype: torch.dtype = torch.float32, size: Sequence[int] | None = None) -> Teacher:
    """Load a frozen teacher, on the CPU whatever torch's default device is.

    Args:
        path: "glyphs", a pipeline directory or a hub id (safetensors only).
        dtype: float32 or bfloat16; float16 to store a copy only, as autoencoders overflow in it.
        size: (height, width) of images in pixels; None: the model's usual one, or that of an exported student.

    Raises:
        UserError: there is no such pipeline, its class is not supported, it cannot be loaded, or not in that size.
    """
    path = resolve_path(path)
    family, size = family_of(path), size or exported_size(path)
    options = {"use_safetensors": True, **family.load_options} | dict.fromkeys(_absent_components(family, path))
    try:
        folder = path if Path(path).is_dir() else family.pipeline_class.download(path, **options)
        check_components(Path(folder), component_classes(family), family.optional)
        with torch.device("cpu"):  # inside `configure_model` Lightning makes the GPU torch's default device
            pipeline = family.pipeline_class.from_pretrained(folder, torch_dtype=dtype, **options)
            teacher = family.from_pipeline(pipeline)
        if size is not None:
            teacher.set_size(*size)
        return teacher
    except UserError as error:
        raise UserError(f"teacher {path}: {error}") from error
    except Exception as error:  # the libraries raise many kinds for files that they do not expect
        kind, problem = family.pipeline_class.__name__, f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"teacher {path}: cannot be loaded as a {kind} ({problem})") from error


def checked_size(size: Sequence[int] | None) -> list[int] | None:
    """A `size` as a configuration has it: None, or two positive integers; raises UserError."""
    if size is None:
        return None
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return list(size)
    raise UserError(f"size: {size} must be two positive integers, [height, width] in pixels")


def exported_size(path: str) -> list[int] | None:
    """The size that `diffgan export` has written for a student of another one than its teacher's usual; else None."""
    file = Path(path) / RECORD
    try:
        return checked_size(read_object(file).get("size")) if file.is_file() else None
    except (OSError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{file}: is no record of an export ({first_line(error)}); export the student again") from error


def _absent_components(family: type[Teacher], path: str) -> list[str]:
    """The optional components that a pipeline lacks; diffusers loads it if they are given as None."""
    index = DiffusionPipeline.load_config(path)
    return [name for name in family.optional if is_absent(index, name)]


def resolve_path(path: str) -> str:
    """The directory of an embedded pipeline ("glyphs"); any other path or hub id unchanged."""
    return str(embedded("teacher")) if path == EMBEDDED else path


def public_name(path: str) -> str:
    """A teacher's name for others: a hub id as it is, the last part of a directory."""
    return Path(path).absolute().name if Path(path).exists() or path.count("/") != 1 else path


def family_of(path: str) -> type[Teacher]:
    """The family of a pipeline directory or hub id.

    Raises:
        UserError: there is no such pipeline, or its class is not supported.
    """
    name = pipeline_class_name(path)
    if name is None or name not in FAMILIES:
        raise UserError(f"teacher {path}: is a {name}, not a {' or '.join(FAMILIES)}")
    return FAMILIES[name]


def pipeline_class_name(path: str, role: str = "teacher") -> str | None:
    """The pipeline class that `model_index.json` of a directory or hub id names.

    Args:
        path: directory or hub id.
        role: what the message calls it.

    Raises:
        UserError: there is no such pipeline.
    """
    if (Path(path) / ADAPTERS).is_file() and not (Path(path) / "model_index.json").is_file():
        raise UserError(f"{role} {path}: holds the adapters of a student alone; export it without --lora")
    if Path(path).exists() and not (Path(path) / "model_index.json").is_file():
        remedy = "; convert it: from_single_file and save_pretrained of diffusers" if Path(path).is_file() else ""
        raise UserError(f"{role} {path}: no pipeline directory (model_index.json is missing){remedy}")
    try:
        local = Path(path).exists()
        index = read_object(Path(path) / "model_index.json") if local else DiffusionPipeline.load_config(path)
        if not isinstance(name := index.get("_class_name"), str | None):
            raise ValueError(f"_class_name is {name!r}")
        return name
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        if local:
            raise UserError(f"{role} {path}: model_index.json cannot be read ({first_line(error)})") from error
        raise UserError(
            f"{role} {path}: no such directory, and it cannot be loaded from the hub ({first_line(error)}); "
            "without a network, name a directory"
        ) from error
