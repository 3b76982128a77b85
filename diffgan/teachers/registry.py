"""Teachers by path: the pipeline class that `model_index.json` names decides the family.

A new family is one file in this package and one line in `FAMILIES`; README.md in this folder says what the file has.
"""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from diffgan.errors import UserError, first_line
from diffgan.storage.embedded import EMBEDDED, embedded
from diffgan.teachers.base import Teacher
from diffgan.teachers.stable_diffusion import StableDiffusion
from diffgan.teachers.stable_diffusion_xl import StableDiffusionXL

FAMILIES: dict[str, type[Teacher]] = {  # by pipeline class
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
}


def load_teacher(path: str, dtype: torch.dtype = torch.float32) -> Teacher:
    """Load a frozen teacher, on the CPU whatever torch's default device is.

    Args:
        path: "glyphs", a pipeline directory or a hub id (safetensors only).
        dtype: float32 or bfloat16; float16 to store a copy only, as autoencoders overflow in it.

    Raises:
        UserError: there is no such pipeline, its class is not supported, or it cannot be loaded.
    """
    path = resolve_path(path)
    family = family_of(path)
    options = {"torch_dtype": dtype, "use_safetensors": True, **family.load_options}
    try:
        with torch.device("cpu"):  # inside `configure_model` Lightning makes the GPU torch's default device
            return family.from_pipeline(family.pipeline_class.from_pretrained(path, **options))
    except UserError as error:
        raise UserError(f"teacher {path}: {error}") from error
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        kind = family.pipeline_class.__name__
        raise UserError(f"teacher {path}: cannot be loaded as a {kind}: {first_line(error)}") from error


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
    if name not in FAMILIES:
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
    if Path(path).exists() and not (Path(path) / "model_index.json").is_file():
        raise UserError(f"{role} {path}: no pipeline directory (model_index.json is missing)")
    try:
        return DiffusionPipeline.load_config(path).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        if Path(path).exists():
            raise UserError(f"{role} {path}: model_index.json cannot be read ({first_line(error)})") from error
        raise UserError(
            f"{role} {path}: no such directory, and it cannot be loaded from the hub ({first_line(error)}); "
            "without a network, name a directory"
        ) from error
