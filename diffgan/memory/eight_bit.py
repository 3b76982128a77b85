"""The optimizers of bitsandbytes with 8-bit states, as far as memory goes: the package is not needed to plan."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

BLOCK = 256  # values that share a scale


class AdamW8bit(torch.optim.Optimizer):
    """Makes the two states of every weight that bitsandbytes 0.45 and later make, and changes nothing.

    Args:
        params: the weights.
        lr, betas, eps, weight_decay: as in bitsandbytes; they do not matter here.
        min_8bit_size: values of the smallest tensor with 8-bit states.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.min_8bit_size = min_8bit_size

    def step(self, closure: Any = None) -> None:
        """Make the states: one byte per value and a float32 per block each, or float32 in small tensors."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight not in self.state:
                    self.state[weight] = _states(weight, self.min_8bit_size)


def _states(weight: nn.Parameter, smallest: int) -> dict[str, torch.Tensor]:
    if weight.numel() < smallest:
        return {name: torch.zeros_like(weight, dtype=torch.float32) for name in ("state1", "state2")}
    blocks = -(-weight.numel() // BLOCK)
    states = {name: torch.zeros_like(weight, dtype=torch.uint8) for name in ("state1", "state2")}
    return states | {name: torch.zeros(blocks) for name in ("absmax1", "absmax2")}


class Adam8bit(AdamW8bit):
    """The same memory as `AdamW8bit`."""


NAMES = ("AdamW8bit", "Adam8bit")
