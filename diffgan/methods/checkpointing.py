"""What a distillation adds to a Lightning checkpoint, and leaves out."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from diffgan.training import checkpoints


def keep_trained(checkpoint: dict[str, Any], optimized_names: Sequence[list[str]]) -> None:
    """Remove frozen networks from a checkpoint and key its optimizer states by names of weights, in place.

    Args:
        checkpoint: as Lightning made it.
        optimized_names: for each optimizer, see `optimized_names`.
    """
    checkpoint["state_dict"] = {
        name: weight for name, weight in checkpoint["state_dict"].items() if not name.startswith(checkpoints.FROZEN)
    }
    states = zip(checkpoint["optimizer_states"], optimized_names, strict=True)
    checkpoint["optimizer_states"] = [checkpoints.keyed_by_name(state, names) for state, names in states]


def optimized_names(module: nn.Module, optimizers: Iterable[Optimizer], sharded: bool) -> list[list[str]]:
    """For each optimizer, the names of the weights that the numbers in its state stand for.

    Args:
        module: the module whose names are used.
        optimizers: of its trained networks.
        sharded: FSDP2 numbers the weights of the whole module, other strategies those of the optimizer.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if sharded:
        return [list(names.values()) for _ in optimizers]
    return [_names_of(optimizer, names) for optimizer in optimizers]


def _names_of(optimizer: Optimizer, names: dict[int, str]) -> list[str]:
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
