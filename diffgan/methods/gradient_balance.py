"""The balance of two losses by the lengths of their gradients, averaged over steps."""

import torch
from torch import Tensor

from diffgan.losses.gan import balance
from diffgan.training.transfer import to_device

DECAY = 0.99  # of the averages, per step: they span about 100 steps


class GradientBalance:
    """|grad L_reg| / |grad L_GAN| from exponential averages of the squared norms.

    A single step's ratio is noisy, and large while the gradient of a new D is small.

    Attributes:
        averages: of the squared norms of both gradients, (2,); zero before the first step. Both start at zero, which
            their ratio does not show.
    """

    def __init__(self):
        self.averages = torch.zeros(2, device="cpu")

    def update(self, regression: Tensor, adversarial: Tensor) -> Tensor:
        """Count the squared norms of a step; returns the ratio, (), see `diffgan.losses.gan.balance`."""
        norms = torch.stack([regression, adversarial])
        self.averages = DECAY * to_device(self.averages, norms.device) + (1 - DECAY) * norms
        return balance(*self.averages)
