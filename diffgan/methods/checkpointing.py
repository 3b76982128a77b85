"""What a distillation adds to a Lightning checkpoint, and leaves out."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

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


def optimized_names(module: nn.Module, networks: Iterable[nn.Module], sharded: bool) -> list[list[str]]:
    """For each network, the names of the weights that the numbers in its optimizer's state stand for.

    Args:
        module: the module whose names are used.
        networks: its trained networks, one for each optimizer.
        sharded: FSDP2 numbers the weights of the whole module, other strategies those of the network.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if sharded:
        return [list(names.values()) for _ in networks]
    return [_names_of(network, names) for network in networks]


def _names_of(network: nn.Module, names: dict[int, str]) -> list[str]:
    return [names[id(parameter)] for parameter in network.parameters()]
