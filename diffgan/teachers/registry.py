"""Teachers by path: the pipeline class that `model_index.json` names decides the family.

A new family is one file in this package and one line in `FAMILIES`; README.md in this folder says what the file has.
"""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from diffgan.errors import UserError, first_line
from diffgan.storage.embedded import EMBEDDED, embedded
from diffgan.storage.json_files import read_object
from diffgan.teachers.base import Teacher
from diffgan.teachers.pipeline_checks import check_components, component_classes
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
    options = {"use_safetensors": True, **family.load_options}
    try:
        folder = path if Path(path).is_dir() else family.pipeline_class.download(path, **options)
        check_components(Path(folder), component_classes(family))
        with torch.device("cpu"):  # inside `configure_model` Lightning makes the GPU torch's default device
            pipeline = family.pipeline_class.from_pretrained(folder, torch_dtype=dtype, **options)
            return family.from_pipeline(pipeline)
    except UserError as error:
        raise UserError(f"teacher {path}: {error}") from error
    except Exception as error:  # the libraries raise many kinds for files that they do not expect
        kind, problem = family.pipeline_class.__name__, f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"teacher {path}: cannot be loaded as a {kind} ({problem})") from error


def resolve_path(path: str) -> str:
    """The directory of an embedded pipeline ("glyphs"); any other path or hub id unchanged."""
    return str(embedded("teacher")) if path == EMBEDDED else path


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
    if Path(path).exists() and not (Path(path) / "model_index.json").is_file():
        raise UserError(f"{role} {path}: no pipeline directory (model_index.json is missing)")
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
