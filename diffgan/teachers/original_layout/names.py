"""Renaming of weights by rules."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from diffgan.errors import UserError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]  # pattern of a name's beginning, and what replaces it


def renamed(weights: Mapping[str, Tensor], rules: Sequence[Rule], network: str) -> dict[str, Tensor]:
    """The weights under new names: the first rule whose pattern a name begins with replaces that beginning.

    Args:
        weights: by name.
        rules: their order matters.
        network: what a message calls the network.

    Raises:
        UserError: a name fits no rule, so the layout has no place for it.
    """
    return {_renamed(name, rules, network): weight for name, weight in weights.items()}


def joined(networks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of several networks under one, each network's with its prefix."""
    return {prefix + name: weight for prefix, weights in networks.items() for name, weight in weights.items()}


def inner_name(name: str, names: Mapping[str, str]) -> str:
    """The name with the part at its beginning replaced as `names` says, or unchanged."""
    for old, new in names.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def _renamed(name: str, rules: Sequence[Rule], network: str) -> str:
    for pattern, replacement in rules:
        new, count = re.subn(f"^{pattern}", replacement, name, count=1)
        if count:
            return new
    raise UserError(f"{network}: {name} has no place in the original layout; export without --single_file")
