"""Regression losses between the latents of student and teacher (paper, section 3.1): (generated, target) -> (N,)."""

import math

import torch
from torch import Tensor, nn

from diffgan.latent_space import LatentSpace
from diffgan.perceptual.distance import PerceptualDistance


class RegressionLoss(nn.Module):
    """Interface of regression losses: a distance between latents, one value per sample."""

    def check_space(self, space: LatentSpace) -> None:
        """Raises UserError if the loss is not defined on latents of `space`."""

    def forward(self, generated: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The distance of every sample.

        Args:
            generated: latents of the student, (N, C, H, W).
            target: latents of the teacher, (N, C, H, W).
            generator: source of random numbers, for losses that use any.

        Returns:
            (N,)
        """
        raise NotImplementedError


class MSE(RegressionLoss):
    """Mean squared error: |x^ - x|^2 / d, with d values per latent."""

    def forward(self, generated: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (generated - target).square().flatten(1).mean(1)


class PseudoHuber(RegressionLoss):
    """sqrt(|x^ - x|^2 + c^2) - c with c = 0.00054 sqrt(d) (Song and Dhariwal 2024, eq. 7 and section 3.3)."""

    def forward(self, generated: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        difference = (generated - target).flatten(1)
        c = 0.00054 * math.sqrt(difference.shape[1])
        return (difference.square().sum(1) + c**2).sqrt() - c


class Perceptual(RegressionLoss):
    """A perceptual distance of latents: `LatentLPIPS`, `ELatentLPIPS` or, through the decoder, `PixelLPIPS`."""

    def __init__(self, distance: PerceptualDistance):
        super().__init__()
        self.distance = distance

    def check_space(self, space: LatentSpace) -> None:
        self.distance.check_space(space)

    def forward(self, generated: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.distance(generated, target, generator=generator)
