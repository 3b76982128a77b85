"""LPIPS on latents: LatentLPIPS, and E-LatentLPIPS with the ensemble (paper, section 3.2)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.ensemble import Ensemble
from diffgan.perceptual.heads import tap_distance
from diffgan.perceptual.weights import PerceptualWeights, load_weights


class LatentLPIPS(nn.Module):
    """Perceptual distance of latents: squared differences of channel-normalised VGG features (paper, eq. 6).

    d(x, y) = sum over the five taps k of mean over positions of sum_c h_kc (unit(f_k(x)) - unit(f_k(y)))_c^2
    (Zhang et al. 2018, eq. 1), with heads h >= 0; a file without heads has h = 1.

    Args:
        weights: a file written by the stages `latent_vgg` or `calibration`, or "glyphs"; it carries its latent space.
        checkpointing: keep the activations of the taps alone and compute the others again in the backward pass.
    """

    def __init__(self, weights: Path, checkpointing: bool = False):
        super().__init__()
        self.weights = weights
        self.network, self.space, heads, self.eps = load_weights(weights)
        self.network.to(memory_format=torch.channels_last)
        self.network.recompute = checkpointing
        heads = heads or [torch.ones(channels) for channels in self.network.tap_channels]
        self.heads = nn.ParameterList(nn.Parameter(head.clamp_min(0), requires_grad=False) for head in heads)

    def train(self, mode: bool = True) -> "LatentLPIPS":
        return super().train(False)

    def check_space(self, space: LatentSpace) -> None:
        """Raises UserError if the weights were trained on another latent space than `space`."""
        if space != self.space:
            raise UserError(f"{self.weights}: trained on {self.space}, but these latents are {space}")

    def forward(self, generated: Tensor, target: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """generated, target: (N, C, H, W) latents -> distances (N,) >= 0, 0 for equal inputs; no gradient to target."""
        with torch.no_grad():
            goals = self.taps(target.detach())
        maps = zip(self.taps(generated), goals, self.heads, strict=True)
        return sum(tap_distance(features, goal, head, self.eps) for features, goal, head in maps)

    def taps(self, latent: Tensor) -> list[Tensor]:
        """latent: (N, C, H, W) -> the five feature maps."""
        return self.network(latent.contiguous(memory_format=torch.channels_last))

    def as_weights(self) -> PerceptualWeights:
        """What `save_weights` writes: this network and these heads."""
        return PerceptualWeights(self.network, self.space, list(self.heads), self.eps)


class ELatentLPIPS(LatentLPIPS):
    """LatentLPIPS under a random transform of both latents, another one for each sample and call (paper, eq. 7).

    Args:
        weights: as `LatentLPIPS`.
        ensemble: letters of the transform groups of `Ensemble`.
        transforms: draws that are averaged in one call; more make a steadier metric.
        l1_weight: weight of the mean absolute difference of the latents themselves, which the authors' package adds
            with weight 1 unless told otherwise.
        checkpointing: as `LatentLPIPS`.
    """

    def __init__(
        self,
        weights: Path,
        ensemble: str = "bgo",
        transforms: int = 1,
        l1_weight: float = 0.0,
        checkpointing: bool = False,
    ):
        super().__init__(weights, checkpointing)
        if transforms < 1 or l1_weight < 0:
            raise UserError(f"ELatentLPIPS: transforms {transforms} must be 1 or more, l1_weight {l1_weight} 0 or more")
        self.ensemble, self.transforms, self.l1_weight = Ensemble(ensemble), transforms, l1_weight

    def forward(self, generated: Tensor, target: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """As `LatentLPIPS`; `generator` (on the CPU) makes the draws of a call repeatable."""
        target = target.detach()
        draws = [self.ensemble(generated, target, generator) for _ in range(self.transforms)]
        distance = sum(super(ELatentLPIPS, self).forward(*draw) for draw in draws) / self.transforms
        if self.l1_weight:
            distance = distance + self.l1_weight * (generated - target).abs().flatten(1).mean(1)
        return distance
