"""A copy of a frozen network in a lower precision."""

import copy

import torch
from torch import nn


class LowerPrecision:
    """Keeps a copy of a frozen network in the precision of autocast, which converts frozen weights at every call.

    The copy is no submodule: it is neither moved nor saved. It is made again when the weights have changed.
    """

    def __init__(self) -> None:
        self._copy: nn.Module | None = None
        self._made_from: tuple | None = None

    def of(self, network: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The network in this dtype, without gradients of its weights.

        Args:
            network: whose weights are frozen.
            dtype: such as bfloat16.
        """
        now = (dtype, *_state(network))
        if now != self._made_from:
            with torch.inference_mode(False), torch.no_grad():  # a validation may make what training uses
                self._copy, self._made_from = _converted(network, dtype), now
        return self._copy


def _converted(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with weights of this dtype. `Module.to` fails on the fake tensors of `diffgan plan`."""
    converted = copy.deepcopy(network)
    for module in converted.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))
    return converted


def _state(network: nn.Module) -> tuple:
    """Differs after the weights have been replaced, moved or written to."""
    weights = list(network.parameters())
    versions = (weight._version for weight in weights if not weight.is_inference())  # those have none
    return id(network), weights[0].device, weights[0].dtype, sum(versions)
