"""Checks of a pipeline directory before any of it is loaded: libraries complete what is missing with random weights.

Every tensor that a network needs has to be in its files, with its shape; the networks are built on the device "meta",
so neither a large number in a configuration nor the weights themselves take memory.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from diffgan.errors import UserError, reason
from diffgan.storage.json_files import read_object
from diffgan.storage.tensor_files import expected_tensors
from diffgan.storage.tensor_headers import FLOATS, Expected, TensorInfo, read_tensors_header, tensors_fault
from diffgan.teachers.pipeline_files import PREFIX

INDEX, CONFIG = "model_index.json", "config.json"
NETWORKS = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection)
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
MAX_TIMESTEPS = 10**5  # of a schedule, whose tables are made when it is built
LAYERS = re.compile("layers")  # in the names of settings that are numbers of layers, each of which has a tensor
# Names of an attention's weights in files of diffusers below 0.15.
EARLIER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def check_components(folder: Path, classes: Mapping[str, type], optional: Collection[str] = ()) -> None:
    """Check the components of a pipeline directory: that they are of these classes, and their files complete.

    Args:
        folder: a pipeline directory.
        classes: name of a component -> the class it must have.
        optional: names of components that the pipeline may lack.

    Raises:
        UserError: names the component or file and what is wrong with it.
    """
    index = _json(folder, INDEX)
    for name, wanted in classes.items():
        if name in optional and is_absent(index, name):
            continue
        component = _class_of(index, name, wanted)
        if not (folder / name).is_dir():
            raise UserError(f"the folder {name} is missing")
        for file in sorted((folder / name).glob("*.json")):
            _json(folder, f"{name}/{file.name}")
        if issubclass(component, SchedulerMixin):
            _check_timesteps(_json(folder, f"{name}/scheduler_config.json"))
        if issubclass(component, ModelMixin | PreTrainedModel):
            check_network(folder / name, component)


def is_absent(index: Mapping[str, Any], name: str) -> bool:
    """Whether `model_index.json` says that a pipeline does not have a component: no entry, or [null, null]."""
    entry = index.get(name)
    return entry is None or entry == [None, None]


def check_networks(folder: Path, without: Collection[str] = ()) -> None:
    """Check the files of those networks of a pipeline directory that are of the classes `NETWORKS`.

    Args:
        folder: of a pipeline of any class.
        without: names of components that will be replaced.

    Raises:
        UserError: as `check_components`.
    """
    for name, entry in _json(folder, INDEX).items():
        class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        network_class = next((known for known in NETWORKS if known.__name__ == class_name), None)
        if network_class is not None and name not in without:
            check_network(folder / name, network_class)


def component_classes(family: type) -> dict[str, type]:
    """The classes of a family's components, as the annotations of its constructor state them."""
    hints = get_type_hints(family.__init__)
    return {name: _without_none(hints[name]) for name in family.components if name in hints}


def _without_none(annotation: Any) -> type:
    """The class in `Class | None`."""
    return next((kind for kind in get_args(annotation) if kind is not NoneType), annotation)


def check_network(folder: Path, network_class: type[ModelMixin] | type[PreTrainedModel]) -> None:
    """Check that the safetensors files in a folder hold every tensor of a network, in its shape.

    Args:
        folder: of the network, with its configuration.
        network_class: its class in diffusers or transformers.

    Raises:
        UserError: names the file and the first tensor that is missing or has another shape or dtype.
    """
    place = folder.name
    config, (file, found) = _json(folder.parent, f"{place}/{CONFIG}"), _tensors(folder, network_class)
    for path, count in _layer_counts(config):
        if count > len(found):
            raise UserError(f"{place}/{CONFIG}: {path} is {count}, more than the {len(found)} tensors of {file}")
    try:
        with torch.device("meta"):
            network = _build(network_class, config)
    except Exception as error:  # whatever a constructor does with numbers and names that it does not expect
        kind, problem = network_class.__name__, f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"{place}/{CONFIG}: is no configuration of a {kind} ({problem})") from error
    tied = set(getattr(network, "_tied_weights_keys", None) or ())  # another name of a tensor that is there
    wanted = expected_tensors(network).items()
    expected = {name: want for name, want in wanted if want.dtypes == FLOATS and name not in tied}
    renamed = {_present_name(name, expected): info for name, info in found.items()}
    if fault := tensors_fault(renamed, expected, more_allowed=True):
        raise UserError(f"{place}/{file}: {fault}; restore the files of this pipeline")


def _build(network_class: type[nn.Module], config: dict[str, Any]) -> nn.Module:
    if issubclass(network_class, PreTrainedModel):
        return network_class(network_class.config_class.from_dict(config))
    return network_class.from_config(config)


# ---- configurations ----


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_object(folder / name)
    except FileNotFoundError as error:
        raise UserError(f"{name} is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read ({reason(error)})") from error


def _class_of(index: dict[str, Any], name: str, wanted: type) -> type:
    """The class that `model_index.json` names for a component."""
    kind = wanted.__name__
    entry = index.get(name)
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
        raise UserError(f"{INDEX}: a pipeline without {name} is not supported")
    library, class_name = entry
    component = getattr(LIBRARIES.get(library), class_name, None)
    if not (isinstance(component, type) and issubclass(component, wanted)):
        raise UserError(f"{INDEX}: {name} is a {library}.{class_name} and must be a {kind}")
    return component


def _check_timesteps(config: dict[str, Any]) -> None:
    timesteps = config.get("num_train_timesteps", 1)
    if type(timesteps) is not int or not 1 <= timesteps <= MAX_TIMESTEPS:
        shown = f"num_train_timesteps is {timesteps!r}"
        raise UserError(f"scheduler_config.json: {shown} and must be an integer between 1 and {MAX_TIMESTEPS}")


def _layer_counts(config: dict[str, Any]) -> list[tuple[str, int]]:
    """The settings that are numbers of layers, by name; of a list every number."""
    counts = []
    for name, value in config.items():
        values = value if isinstance(value, list) else [value]
        values = [number for inner in values for number in (inner if isinstance(inner, list) else [inner])]
        if LAYERS.search(name):
            counts += [(name, number) for number in values if isinstance(number, int | float)]
    return counts


# ---- tensors ----


def _tensors(folder: Path, network_class: type) -> tuple[str, dict[str, TensorInfo]]:
    """The name of a network's file, or of the index of its files, and the tensors that these hold."""
    is_transformer = issubclass(network_class, PreTrainedModel)
    whole = "model.safetensors" if is_transformer else "diffusion_pytorch_model.safetensors"
    index = f"{whole}.index.json"
    in_one_file = (is_transformer and (folder / whole).is_file()) or not (folder / index).is_file()
    if in_one_file:
        return whole, _header(folder, whole)
    names = _json(folder.parent, f"{folder.name}/{index}").get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and "/" not in name for name in names.values()):
        raise UserError(f"{folder.name}/{index}: its weight_map names no files in this folder")
    found: dict[str, TensorInfo] = {}
    for name in sorted(set(names.values())):
        found |= _header(folder, name)
    return index, {name: info for name, info in found.items() if name in names}


def _header(folder: Path, name: str) -> dict[str, TensorInfo]:
    place = f"{folder.name}/{name}"
    try:
        return read_tensors_header(folder / name).tensors
    except FileNotFoundError as error:
        raise UserError(f"{place} is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: cannot be read as safetensors ({reason(error)})") from error


def _present_name(name: str, expected: Mapping[str, Expected]) -> str:
    """The name of a tensor in the network, given that in a file, as the libraries find it."""
    if name in expected:
        return name
    if (short := name.removeprefix(PREFIX)) in expected:
        return short
    for before, now in EARLIER.items():
        if (renamed := name.replace(before, now)) in expected:
            return renamed
    return name
