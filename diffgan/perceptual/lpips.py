"""LPIPS on latents: LatentLPIPS, and E-LatentLPIPS with its ensemble of transforms (paper, section 3.2)."""

import warnings
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.distance import PerceptualDistance
from diffgan.perceptual.ensemble import Ensemble
from diffgan.perceptual.heads import taps_distance
from diffgan.perceptual.lower_precision import LowerPrecision
from diffgan.perceptual.pretrained import pretrained_weights
from diffgan.perceptual.statistics import LatentStatistics
from diffgan.perceptual.weights import PerceptualWeights, load_weights
from diffgan.training.precision import autocast_dtype, without_autocast


class LatentLPIPS(PerceptualDistance):
    """Perceptual distance of latents: squared differences of channel-normalised VGG features (paper, eq. 6).

    d(x, y) = sum over the five taps k of mean over positions of sum_c h_kc (f^_k(x) - f^_k(y))_c^2
    (Zhang et al. 2018, eq. 1), where f^_k is the feature map k with unit length at every position and h >= 0 are the
    heads; a file without heads has h = 1. The module always stays in eval mode and its weights are frozen.

    Args:
        weights: file written by `diffgan.perceptual.classification`, `diffgan.perceptual.calibration` or
            `diffgan convert`, or "glyphs" for the weights of the package. The file names its latent space.
        checkpointing: keep the activations of the taps alone and compute the others again in the backward pass.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """

    def __init__(self, weights: Path, checkpointing: bool = False):
        super().__init__()
        self.weights = weights
        self.network, self.space, heads, self.eps, self.statistics = load_weights(weights)
        self.network.to(memory_format=torch.channels_last)
        self.network.recompute = checkpointing
        heads = heads or [torch.ones(channels) for channels in self.network.tap_channels]
        self._lower, self._compared = LowerPrecision(), False
        self.heads = nn.ParameterList(nn.Parameter(head.clamp_min(0), requires_grad=False) for head in heads)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **arguments: Any) -> Self:
        """The distance with the weights of a file, a folder that holds one, or a repository on the hub.

        Args:
            name: as of `diffgan.perceptual.pretrained.pretrained_weights`.
            revision: branch, tag or commit of a repository.
            arguments: of the class, other than `weights`.

        Raises:
            UserError: as the class; there is no such file, or the hub cannot be reached.
        """
        return cls(pretrained_weights(name, revision), **arguments)

    def check_space(self, space: LatentSpace) -> None:
        """Raises UserError if the weights were trained on another latent space than `space`."""
        if space != self.space:
            raise UserError(f"{self.weights}: trained on {self.space}, but these latents are {space}")

    def forward(self, generated: Tensor, target: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Distances of pairs of latents.

        The first call warns if the statistics of `target` are far from those of the latents that the weights are for.
        Nothing is compared if the file of the weights holds no statistics, or under `torch.compile`.

        Args:
            generated, target: (N, C, H, W) latents of the diffusion model; no gradient goes to `target`.
            generator: ignored here; see `ELatentLPIPS`.

        Returns:
            (N,) distances >= 0, 0 for equal inputs.

        Raises:
            UserError: latents are not of rank 4, have another number of channels than those of the weights, or sides
                too short for the pools of the network.
        """
        self._check(generated, target)
        return self._distance(generated, target)

    def _check(self, generated: Tensor, target: Tensor) -> None:
        """Raises UserError for latents of another shape; warns once if they resemble no latents of these weights."""
        for latent in (generated, target):
            if latent.ndim != 4 or latent.shape[1] != self.space.channels:
                raise UserError(
                    f"{self.weights}: weights of latents (N, {self.space.channels}, H, W), but these latents are "
                    f"{tuple(latent.shape)}; use the weights of their autoencoder"
                )
        if not self._compared and not torch.compiler.is_compiling():
            self._compared = True
            self._compare(target)

    def _compare(self, latents: Tensor) -> None:
        """Warn if the statistics of latents are not those that the weights were calibrated on."""
        if self.statistics is None or type(latents) is not Tensor or latents.is_meta:  # without values, or sharded
            return
        found = LatentStatistics.of(latents)
        if not self.statistics.resembles(found, len(latents)):
            warnings.warn(
                f"{type(self).__name__}: these latents have {found}, those of {self.weights} have {self.statistics}: "
                f"give latents of the diffusion model, {self.space.equation()}, or use the weights of their "
                "autoencoder",
                stacklevel=6,  # the line that calls the module
            )

    def _distance(self, generated: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            target_taps = self.taps(target.detach())
        return taps_distance(self.taps(generated), target_taps, list(self.heads), self.eps)

    def taps(self, latent: Tensor) -> list[Tensor]:
        """latent: (N, C, H, W) -> the five feature maps, under autocast in its precision, else in the weights'.

        Raises:
            UserError: the pools leave nothing of latents of this size.
        """
        if min(latent.shape[2:]) < self.network.least_side:
            sides = f"{latent.shape[2]} x {latent.shape[3]}"
            raise UserError(f"{self.weights}: needs sides of at least {self.network.least_side}, not {sides}")
        dtype = autocast_dtype(latent.device)
        if dtype is None or self.network.norm != "none" or torch.compiler.is_compiling():
            return self.network(latent.to(self.heads[0].dtype, memory_format=torch.channels_last))
        with without_autocast(latent.device):
            return self._lower.of(self.network, dtype)(latent.to(dtype, memory_format=torch.channels_last))

    def as_weights(self) -> PerceptualWeights:
        """This network and these heads, as `save_weights` writes them."""
        return PerceptualWeights(self.network, self.space, list(self.heads), self.eps, self.statistics)


class ELatentLPIPS(LatentLPIPS):
    """LatentLPIPS under a random transform of both latents, drawn anew for each sample and call (paper, eq. 7).

    Args:
        weights: as `LatentLPIPS`.
        ensemble: letters of the transform groups of `Ensemble`.
        transforms: number of transforms averaged in one call; more give a metric of less variance.
        l1_weight: weight of the mean absolute difference of the latents, added to the distance. The default of the
            authors' package is 1.
        checkpointing: as `LatentLPIPS`.

    Raises:
        UserError: as `LatentLPIPS`; an unknown group, `transforms` below 1 or `l1_weight` below 0.
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
        """Distances of pairs of latents under random transforms.

        The first call warns about the statistics of `target` as that of `LatentLPIPS`.

        Args:
            generated, target: as `LatentLPIPS.forward`.
            generator: on the CPU, source of the random transforms, which makes those of a call repeatable; None:
                PyTorch's own generator.

        Returns:
            (N,) distances >= 0, 0 for equal inputs.

        Raises:
            UserError: as `LatentLPIPS.forward`.
        """
        self._check(generated, target)
        target = target.detach()
        transformed = [self.ensemble(generated, target, generator) for _ in range(self.transforms)]
        distance = sum(self._distance(*pair) for pair in transformed) / self.transforms
        if self.l1_weight:
            difference = generated.to(distance.dtype) - target
            distance = distance + self.l1_weight * difference.abs().flatten(1).mean(1)
        return distance
