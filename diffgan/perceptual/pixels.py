"""LPIPS of decoded images as a distance of latents: what the paper's LatentLPIPS is compared with."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.latent_space import PIXELS, LatentSpace
from diffgan.perceptual.distance import PerceptualDistance
from diffgan.perceptual.lpips import LatentLPIPS
from diffgan.teachers.autoencoders import decode_with_gradient, load_autoencoder

LPIPS_PACKAGE = "lpips"


class PixelLPIPS(PerceptualDistance):
    """LPIPS in pixels: d(decode(x^), decode(x)). The gradient passes through the decoder.

    Args:
        weights: weight file of the VGG16 of pixels, "glyphs-pixels" for the miniature's, or "lpips" for the package of
            that name (VGG16 of ImageNet).
        vae: autoencoder of the latents: a directory, "owner/model/vae" on the hub, or "glyphs".
        checkpointing: compute the decoder's activations again in the backward pass instead of keeping them.

    Raises:
        UserError: the weights are of latents, there is no such autoencoder, or the package lpips is not installed.
    """

    def __init__(self, weights: str, vae: str, checkpointing: bool = False):
        super().__init__()
        self.vae_name, self.vae = vae, load_autoencoder(vae)
        self.space = LatentSpace.of_config(self.vae.config)
        if checkpointing:
            self.vae.enable_gradient_checkpointing()
        self.distance = DecodedDistance(pixel_distance(weights), partial(decode_with_gradient, self.vae))

    def check_space(self, space: LatentSpace) -> None:
        if space != self.space:
            raise UserError(f"{self.vae_name}: an autoencoder of {self.space}, but these latents are {space}")

    def forward(self, generated: Tensor, target: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """As `PerceptualDistance.forward`; `generator` is ignored."""
        return self.distance(generated, target)


class DecodedDistance(nn.Module):
    """A distance of images as a distance of latents: d(decode(x), decode(y)).

    Args:
        distance: of images (N, 3, H, W).
        decode: latents of the diffusion model (N, C, H, W) -> images in [-1, 1], differentiable.
    """

    def __init__(self, distance: nn.Module, decode: Callable[[Tensor], Tensor]):
        super().__init__()
        self.distance, self.decode = distance, decode

    def forward(self, generated: Tensor, target: Tensor) -> Tensor:
        """generated, target: (N, C, H, W) -> (N,); no gradient to target."""
        with torch.no_grad():
            target_images = self.decode(target)
        return self.distance(self.decode(generated), target_images).flatten()


def pixel_distance(weights: str) -> nn.Module:
    """LPIPS of images (N, 3, H, W) in [-1, 1] -> N distances; `weights` and errors as of `PixelLPIPS`."""
    if weights != LPIPS_PACKAGE:
        distance = LatentLPIPS(weights)
        distance.check_space(PIXELS)
        return distance
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise UserError("weights lpips: the package is not installed; pip install lpips") from error
    return LPIPS(net="vgg").requires_grad_(False).eval()
