"""The optimizers of bitsandbytes with 8-bit states, as far as memory goes: the package is not needed to plan."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

SMALLEST = 4096  # values of the smallest tensor with 8-bit states
BLOCK = 256  # values that share a scale


class AdamW8bit(torch.optim.Optimizer):
    """Makes the two states of every weight that bitsandbytes 0.45 and later make, and changes nothing.

    Args:
        params: the weights.
        settings: any of the optimizer's arguments; they do not matter here.
    """

    def __init__(self, params: Iterable[nn.Parameter], **settings: Any):
        super().__init__(params, settings)

    def step(self, closure: Any = None) -> None:
        """Make the states: one byte per value and a float32 per block each, or float32 in small tensors."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight not in self.state:
                    self.state[weight] = _states(weight)


def _states(weight: nn.Parameter) -> dict[str, torch.Tensor]:
    if weight.numel() < SMALLEST:
        return {name: torch.zeros_like(weight, dtype=torch.float32) for name in ("state1", "state2")}
    blocks = -(-weight.numel() // BLOCK)
    states = {name: torch.zeros_like(weight, dtype=torch.uint8) for name in ("state1", "state2")}
    return states | {name: torch.zeros(blocks) for name in ("absmax1", "absmax2")}


class Adam8bit(AdamW8bit):
    """The same memory as `AdamW8bit`."""


NAMES = ("AdamW8bit", "Adam8bit")
