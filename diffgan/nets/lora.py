"""Low-rank adapters (LoRA): a network learns by small matrices beside its own weights, which stay as they are.

W x becomes W x + (alpha / rank) B A x, with B zero at first (Hu et al. 2022, arXiv 2106.09685, section 4.1). The
package `peft` puts them in place. The weights W are not copied: generator, moving average, discriminator and teacher
share them.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from diffgan.errors import UserError
from diffgan.teachers.denoiser import adapter_for
from diffgan.training.sharing import copy_sharing

NAME = "default"  # of the adapter in peft
MAX_RANK = 4096  # layers are hardly wider


@dataclass(frozen=True)
class LoRA:
    """Adapters instead of a full training.

    Attributes:
        rank: of the matrices A and B, from 1 to 4096.
        alpha: the adapters' output is scaled by alpha / rank; None: alpha is the rank.
        targets: ends of the names of the layers that get adapters; None: those of `DenoiserAdapter.lora_targets`.

    Raises:
        UserError: a value is out of range.
    """

    rank: int
    alpha: float | None = None
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise UserError(f"lora: rank is {self.rank} and must be at least 1 and at most {MAX_RANK}")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UserError(f"lora: alpha is {self.alpha} and must be above 0 and finite")
        if self.targets is not None and not self.targets:
            raise UserError("lora: targets is empty; name layers, such as to_q, or leave it out")

    @property
    def scale(self) -> float:
        """alpha as a number."""
        return float(self.rank if self.alpha is None else self.alpha)


def with_adapters(network: nn.Module, lora: LoRA) -> nn.Module:
    """A copy of a network with adapters, sharing its weights, which are frozen; the adapters alone get gradients.

    Raises:
        UserError: peft is not installed, or a target matches no layer.
    """
    copied = copy_sharing(network, network)
    add_adapters(copied, lora)
    return copied


def add_adapters(network: nn.Module, lora: LoRA) -> None:
    """Put adapters into a network, in place; its other weights are frozen. Errors as in `with_adapters`."""
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora: needs the package peft: pip install 'diffgan[lora]'") from error
    layers = _layers(network, lora.targets)
    network.requires_grad_(False)
    inject_adapter_in_model(_peft_config(lora, layers), network, adapter_name=NAME)


def merge_adapters(network: nn.Module) -> None:
    """Add the adapters to the weights beside them, and remove them, in place; the weights must not be shared."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, layer.get_base_layer())
    del network.peft_config


def save_adapters(network: nn.Module, pipeline_class: type[DiffusionPipeline], folder: Path) -> None:
    """Write a network's adapters as `pytorch_lora_weights.safetensors`, which `load_lora_weights` of diffusers reads.

    Args:
        network: with adapters.
        pipeline_class: the stock pipeline of the network.
        folder: of the file.

    Raises:
        UserError: diffusers has no LoRA files for this pipeline.
    """
    from peft import get_peft_model_state_dict

    component = adapter_for(network).component
    if not hasattr(pipeline_class, "save_lora_weights"):
        raise UserError(f"lora: diffusers loads no LoRA files into a {pipeline_class.__name__}; export without --lora")
    content = {
        f"{component}_lora_layers": get_peft_model_state_dict(network, adapter_name=NAME),
        f"{component}_lora_adapter_metadata": network.peft_config[NAME].to_dict(),  # alpha, which tensors do not tell
    }
    pipeline_class.save_lora_weights(folder, **content)


def _peft_config(lora: LoRA, layers: Sequence[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=lora.rank, lora_alpha=lora.scale, target_modules=list(layers), lora_dropout=0.0)


def _layers(network: nn.Module, targets: list[str] | None) -> list[str]:
    """Names of the linear layers and convolutions whose name ends with a target.

    Raises:
        UserError: a target that was given matches none.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if targets is None:
        return _ending_with(names, adapter_for(network).lora_targets())
    for target in targets:
        if not _ending_with(names, [target]):
            examples = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdecimal()})
            raise UserError(
                f"lora: targets: {target} matches no layer of the {type(network).__name__}; its layers are named "
                f"{', '.join(examples)}"
            )
    return _ending_with(names, targets)


def _ending_with(names: Iterable[str], targets: Iterable[str]) -> list[str]:
    ends = tuple(f".{target}" for target in targets)
    return [name for name in names if f".{name}".endswith(ends)]


def copied_network(network: nn.Module, from_teacher: bool, lora: LoRA | None) -> nn.Module:
    """A discriminator's network: a copy of the teacher's with its weights, or random ones, or sharing them under LoRA.

    Raises:
        UserError: random weights are to be adapted; others as in `with_adapters`.
    """
    if lora is not None:
        if not from_teacher:
            raise UserError("discriminator: from_teacher is false, so lora has no trained weights beside it")
        return with_adapters(network, lora)
    copied = copy.deepcopy(network) if from_teacher else type(network).from_config(network.config)
    return copied.to(network.device)


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The weights of a network that are trained: all of them, or its adapters and what was added to it."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def freeze_shared(network: nn.Module, base: nn.Module) -> None:
    """Let all weights of a network get gradients but those that it shares with `base`."""
    shared = {id(parameter) for parameter in base.parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) not in shared)
