"""Networks without weights: a teacher built from its configuration files, and fake tensors in place of values."""

from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import AutoConfig

from diffgan.errors import UserError, first_line
from diffgan.teachers.base import Teacher
from diffgan.teachers.denoiser import ADAPTERS
from diffgan.teachers.registry import family_of, resolve_path


def skeleton_teacher(path: str, device: str = "meta", size: list[int] | None = None) -> Teacher:
    """A teacher without tokenizers, built from the pipeline's small JSON files alone.

    Args:
        path: "glyphs", a pipeline directory or a hub id.
        device: where it is built; on another one than "meta" the weights are random.
        size: (height, width) of images in pixels; None: the model's usual one.

    Raises:
        UserError: there is no such pipeline, its class is not supported, or a configuration cannot be read.
    """
    path = resolve_path(path)
    family = family_of(path)
    try:
        index = DiffusionPipeline.load_config(path)
        with torch.device(device):
            components = {name: _component(family, name, index, path) for name in family.components}
        teacher = family(**components)
        if size is not None:
            teacher.set_size(*size)
        return teacher
    except UserError as error:
        raise UserError(f"teacher {path}: {error}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"teacher {path}: its configuration cannot be read ({first_line(error)})") from error


def _component(family: type[Teacher], name: str, index: dict[str, Any], path: str) -> Any:
    """One component of a pipeline without weights; None for a tokenizer."""
    if name == "scheduler":
        with torch.device("cpu"):
            return family.schedule_class.load(path).scheduler
    if name.startswith("tokenizer"):
        return None
    if name in family.optional and index[name][0] is None:
        return None
    if name.startswith("text_encoder"):
        config = AutoConfig.from_pretrained(path, subfolder=name)
        text_config = getattr(config, "text_config", config)
        return getattr(transformers, index[name][1])(text_config)
    is_denoiser = name == ADAPTERS[family.network_class].component
    network_class = family.network_class if is_denoiser else getattr(diffusers, index[name][1])
    return network_class.from_config(network_class.load_config(path, subfolder=name))


def make_fake(module: nn.Module) -> None:
    """Replace the weights and buffers of a module by fake tensors of their shapes, in place.

    Call it inside a `FakeTensorMode`: nothing is allocated.
    """
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = _fake(tensor)


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
