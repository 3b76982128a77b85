"""LPIPS on latents: LatentLPIPS, and E-LatentLPIPS with the ensemble (paper, section 3.2)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.latents import LatentSpace
from diffgan.perceptual.ensemble import Ensemble
from diffgan.perceptual.latent_vgg import load_vgg


def unit(features: Tensor, eps: float = 1e-10) -> Tensor:
    """Features (N, C, H, W) divided by their norm over the channels at every position."""
    features = features.float()  # the squares of bf16 features would lose the differences
    return features / (features.square().sum(1, keepdim=True) + eps).sqrt()


class LatentLPIPS(nn.Module):
    """Perceptual distance of latents: squared differences of channel-normalised VGG features, uniform heads.

    d(x, y) = sum over the five taps of mean over positions of |unit(f(x)) - unit(f(y))|^2  (Zhang et al. 2018, eq. 1).

    Args:
        weights: a file written by the `latent_vgg` stage; it carries the latent space it belongs to.
        ensemble: letters of the transform groups of `Ensemble`, e.g. "bgo" for E-LatentLPIPS; "" for LatentLPIPS.
    """

    def __init__(self, weights: Path, ensemble: str = "bgo"):
        super().__init__()
        self.weights = weights
        self.network, self.space = load_vgg(weights)
        self.network.to(memory_format=torch.channels_last)
        self.ensemble = Ensemble(ensemble)

    def train(self, mode: bool = True) -> "LatentLPIPS":
        return super().train(False)

    def check_space(self, space: LatentSpace) -> None:
        """Raises UserError if the weights were trained on another latent space than `space`."""
        if space != self.space:
            raise UserError(f"{self.weights}: trained on {self.space}, but the teacher's latents are {space}")

    def forward(self, generated: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """generated, target: (N, C, H, W) latents -> distances (N,), zero for equal inputs; no gradient to target."""
        generated, target = self.ensemble(generated, target.detach(), generator)
        distances = torch.zeros(len(generated), device=generated.device)
        with torch.no_grad():
            goals = self.network(target.contiguous(memory_format=torch.channels_last))
        for feature, goal in zip(
            self.network(generated.contiguous(memory_format=torch.channels_last)), goals, strict=True
        ):
            distances = distances + (unit(feature) - unit(goal)).square().sum(1).mean((-2, -1))
        return distances
