"""The interface of perceptual distances between latents."""

import torch
from torch import Tensor, nn

from diffgan.latent_space import LatentSpace


class PerceptualDistance(nn.Module):
    """A perceptual distance of latents, one value per sample; its weights are frozen and it stays in eval mode."""

    def train(self, mode: bool = True) -> "PerceptualDistance":
        return super().train(False)

    def check_space(self, space: LatentSpace) -> None:
        """Raises UserError if the distance was made for another latent space than `space`."""
        raise NotImplementedError

    def forward(self, generated: Tensor, target: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Distances of pairs of latents.

        Args:
            generated, target: (N, C, H, W) latents of the diffusion model; no gradient goes to `target`.
            generator: on the CPU, source of random numbers, for distances that use any.

        Returns:
            (N,) distances >= 0, 0 for equal inputs.
        """
        raise NotImplementedError
