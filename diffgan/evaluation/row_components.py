"""The components of a row's pipeline: its class, UNet, scheduler and LoRA, each checked against the row."""

import copy
import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from diffgan.errors import UserError, first_line
from diffgan.evaluation.rows import CLASS, SAFE, Lora, Row
from diffgan.teachers.denoiser import UNetAdapter
from diffgan.teachers.pipeline_checks import check_network, check_networks
from diffgan.teachers.registry import pipeline_class_name

UNET = UNetAdapter.component
OWN = {  # arguments of the pipeline's call that the row's other keys or the protocol decide
    *("prompt", "height", "width", "num_inference_steps", "timesteps", "guidance_scale", "num_images_per_prompt"),
    *("generator", "latents", "output_type", "return_dict"),
}
WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    AttributeError,
    RecursionError,
    SafetensorError,
)


def networks(pipeline: DiffusionPipeline) -> list[nn.Module]:
    """The networks of a pipeline."""
    return [component for component in pipeline.components.values() if isinstance(component, nn.Module)]


def load_pipeline(row: Row, path: str, unet: Path | None) -> DiffusionPipeline:
    """The pipeline of a directory or hub id, on the CPU, without safety checker, from safetensors alone.

    Args:
        row: how it will be called, and whether its UNet is replaced.
        path: directory or hub id.
        unet: the file or directory of the row's UNet, where it is one.

    Raises:
        UserError: it cannot be loaded, the UNet does not fit, or the row calls it in a way that it does not know.
    """
    pipeline_class = pipeline_class_of(path, row)
    parameters = inspect.signature(pipeline_class.__init__).parameters
    options: dict[str, Any] = {key: value for key, value in WITHOUT_CHECKER.items() if key in parameters}
    with torch.device("cpu"):
        if Path(path).is_dir():
            _check_networks(path, () if row.unet is None else (UNET,))
        if row.unet is not None:
            options[UNET] = _replacement(row.unet, unet, path)
        try:
            return pipeline_class.from_pretrained(path, use_safetensors=True, **options)
        except LOADING_ERRORS as error:
            message = f"pipeline {path}: cannot be loaded as a {pipeline_class.__name__}: {first_line(error)}"
            raise UserError(message) from error


def _check_networks(path: str, without: tuple[str, ...]) -> None:
    try:
        check_networks(Path(path), without)
    except UserError as error:
        raise UserError(f"pipeline {path}: {error}") from error


def _replacement(name: str, file: Path | None, pipeline: str) -> UNet2DConditionModel:
    """The row's UNet: a file of weights for the pipeline's configuration, or a directory or hub id with its own."""
    if file is not None and file.is_file():
        return unet_of_weights(file, pipeline)
    try:
        if Path(name).is_dir():
            check_network(Path(name), UNet2DConditionModel)
        return UNet2DConditionModel.from_pretrained(name, use_safetensors=True)
    except LOADING_ERRORS as error:
        raise UserError(f"unet {name}: cannot be loaded as a UNet ({first_line(error)})") from error


def row_files(row: Row) -> dict[str, Path]:
    """The files and directories that a row names beside its pipeline; raises UserError if a file is missing."""
    files = {}
    if row.unet is not None and row.unet.endswith(SAFE):
        files[UNET] = file_of("unet", row.unet)
    elif row.unet is not None and Path(row.unet).is_dir():
        files[UNET] = Path(row.unet)
    if row.lora is not None:
        files["lora"] = file_of("lora.file", row.lora.file)
    return files


def file_of(key: str, name: str) -> Path:
    """A file by its path, or by "owner/model/file" on the hub.

    Raises:
        UserError: there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    owner, model, file = [*name.split("/", 2), "", ""][:3]
    missing = f"{key}: no such file {name}; name a file, or owner/model/file on the hub"
    if not (owner and model and file) or name.startswith((".", "~")):
        raise UserError(missing)
    try:
        return Path(hf_hub_download(f"{owner}/{model}", file))
    except (OSError, ValueError) as error:
        raise UserError(f"{missing} ({first_line(error)})") from error


def pipeline_class_of(path: str, row: Row) -> type[DiffusionPipeline]:
    """The class that `model_index.json` names, if it can be called as the row says; raises UserError otherwise."""
    name = pipeline_class_name(path, "pipeline")
    pipeline_class = getattr(diffusers, name or "", None)
    if not (inspect.isclass(pipeline_class) and issubclass(pipeline_class, DiffusionPipeline)):
        raise UserError(f"pipeline {path}: is a {name}, which diffusers {diffusers.__version__} does not have")
    parameters = inspect.signature(pipeline_class.__call__).parameters
    components = inspect.signature(pipeline_class.__init__).parameters
    given = {"prompt", "latents", "generator", "guidance_scale", "output_type"}
    given |= {"timesteps"} if row.timesteps else {"num_inference_steps"}
    if missing := sorted(given - set(parameters)) + sorted({UNET, "vae"} - set(components)):
        raise UserError(f"pipeline {path}: a {name} is not supported; it has no {missing[0]}")
    for key in row.call:
        if key in OWN or key not in parameters:
            reason = "is decided by the row or the protocol" if key in OWN else f"is no argument of a {name}'s call"
            raise UserError(f"call.{key}: {reason}; remove it")
    return pipeline_class


def unet_of_weights(file: Path, pipeline: str) -> UNet2DConditionModel:
    """The pipeline's UNet with the weights of a file."""
    try:
        config = UNet2DConditionModel.load_config(pipeline, subfolder=UNET)
        with init_empty_weights():
            unet = UNet2DConditionModel.from_config(config)
        missing = unet.load_state_dict(load_file(file), assign=True, strict=False)
    except LOADING_ERRORS as error:
        raise UserError(f"unet {file}: does not fit the UNet of {pipeline}: {_first_two_lines(error)}") from error
    for names, problem in ((missing.missing_keys, "lacks"), (missing.unexpected_keys, "has the unknown")):
        if names:
            raise UserError(f"unet {file}: does not fit the UNet of {pipeline}: it {problem} {names[0]}")
    return unet.to(torch.float32)


def scheduler_of(row: Row, own: SchedulerMixin) -> SchedulerMixin:
    """The pipeline's scheduler with the row's class and changes; raises UserError if it cannot follow the row."""
    changes = dict(row.scheduler)
    name = changes.pop(CLASS, type(own).__name__)
    scheduler_class = getattr(diffusers, str(name), None)
    if not (inspect.isclass(scheduler_class) and issubclass(scheduler_class, SchedulerMixin)):
        raise UserError(f"scheduler.class: diffusers has no scheduler {name}")
    known = inspect.signature(scheduler_class.__init__).parameters
    for key in changes:
        if key not in known:
            raise UserError(f"scheduler.{key}: is no setting of {name}; known are {', '.join(list(known)[1:])}")
    if row.timesteps and "timesteps" not in inspect.signature(scheduler_class.set_timesteps).parameters:
        raise UserError(f"timesteps: a {name} takes no list of timesteps; give steps")
    try:
        scheduler = scheduler_class.from_config(own.config, **changes)
        planned_calls(row, scheduler)
    except (ValueError, TypeError, NotImplementedError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"scheduler: a {name} cannot be used in this way ({first_line(error)})") from error
    return scheduler


def planned_calls(row: Row, scheduler: SchedulerMixin) -> int:
    """Number of timesteps at which the scheduler calls the network."""
    scheduler = copy.deepcopy(scheduler)
    if row.timesteps:
        scheduler.set_timesteps(timesteps=row.timesteps)
    else:
        scheduler.set_timesteps(row.steps)
    return len(scheduler.timesteps)


def merge_lora(pipeline: DiffusionPipeline, lora: Lora, file: Path) -> None:
    """Add a LoRA to the weights of the networks; raises UserError unless every layer of it fits one of theirs."""
    if not diffusers.utils.is_peft_available():
        raise UserError("lora: needs the package peft; pip install 'peft>=0.18'")
    try:
        layers = sum(name.endswith(("lora_B.weight", "up.weight")) for name in load_file(file))
        pipeline.load_lora_weights(str(file), use_safetensors=True)
        adapted = _adapted_layers(pipeline)
        pipeline.fuse_lora(lora_scale=lora.scale)
        pipeline.unload_lora_weights()
    except LOADING_ERRORS as error:
        raise UserError(f"lora {file}: does not fit the pipeline: {_first_two_lines(error)}") from error
    if adapted != layers or not layers:
        raise UserError(f"lora {file}: does not fit the pipeline: {adapted} of its {layers} layers have a place there")


def _adapted_layers(pipeline: DiffusionPipeline) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = (module for network in networks(pipeline) for module in network.modules())
    return sum(isinstance(module, BaseTunerLayer) for module in modules)


def _first_two_lines(error: Exception) -> str:
    """An error's message in one line; that of `load_state_dict` names the first weight in its second line."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
