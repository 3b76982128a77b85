"""Families of random distortions of images with a strength in [0, 1], for the synthetic 2AFC of the miniature.

Strength 0 is hardly visible and 1 is strong. Each distortion maps images (N, 3, H, W) in [-1, 1] and strengths (N,)
to images (N, 3, H, W), not clamped.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from diffgan.images import to_uint8
from diffgan.latent_space import LatentSpace
from diffgan.storage.embedded import embedded
from diffgan.teachers.autoencoders import load_autoencoder


def _geometric(strength: Tensor, least: float, most: float) -> Tensor:
    """Geometric interpolation from `least` at strength 0 to `most` at strength 1."""
    return least * (most / least) ** strength


def blur(images: Tensor, strength: Tensor, _: torch.Generator) -> Tensor:
    """Gaussian blur of standard deviation 0.4 to 4 pixels."""
    deviation = _geometric(strength, 0.4, 4.0)[:, None].expand(-1, 2)
    return gaussian_blur2d(images, 25, deviation.contiguous(), border_type="replicate")


def noise(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """White Gaussian noise of standard deviation 0.02 to 0.6 (the range of images is 2)."""
    deviation = _geometric(strength, 0.02, 0.6)[:, None, None, None]
    return images + deviation * torch.randn(images.shape, generator=generator)


def warp(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth random displacement of 0.3 to 5 pixels (root mean square)."""
    coarse = torch.randn(len(images), 2, 5, 5, generator=generator)
    flow = F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)
    flow = flow / flow.square().mean((1, 2, 3), keepdim=True).sqrt()
    pixels = _geometric(strength, 0.3, 5.0)[:, None, None, None]
    grid = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    displaced = grid + (flow * pixels * 2 / images.shape[-1]).movedim(1, -1)
    return F.grid_sample(images, displaced, padding_mode="border", align_corners=False)


def compression(images: Tensor, strength: Tensor, _: torch.Generator) -> Tensor:
    """JPEG of quality 90 to 3."""
    qualities = _geometric(strength, 90.0, 3.0).round().int().tolist()
    pairs = zip(to_uint8(images), qualities, strict=True)
    decoded = torch.stack([decode_jpeg(encode_jpeg(image, quality)) for image, quality in pairs])
    return decoded.float() / 127.5 - 1


def colour(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Rotation of the colours about grey by 5 to 180 degrees, with a shift of brightness up to 0.4."""
    sign = torch.randint(0, 2, (len(images),), generator=generator) * 2 - 1
    angle = sign * _geometric(strength, math.radians(5), math.pi)
    brightness = 0.4 * strength * (2 * torch.rand(len(images), generator=generator) - 1)
    return torch.einsum("nij,njhw->nihw", _hue_rotation(angle), images) + brightness[:, None, None, None]


def _hue_rotation(angle: Tensor) -> Tensor:
    """(N,) radians -> (N, 3, 3) rotations about the grey axis (Rodrigues' formula)."""
    axis = torch.full((3,), 1 / math.sqrt(3))
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * torch.eye(3) + sin * cross + (1 - cos) * torch.outer(axis, axis)


@torch.no_grad()
def autoencoder(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Decoding of latents with noise of standard deviation 0.05 to 1 (that of latents is 1)."""
    vae = _glyph_autoencoder()
    space = LatentSpace.of(vae)
    latent = space.to_model(vae.encode(images).latent_dist.mode())
    deviation = _geometric(strength, 0.05, 1.0)[:, None, None, None]
    noisy = latent + deviation * torch.randn(latent.shape, generator=generator)
    return vae.decode(space.to_autoencoder(noisy)).sample


@cache
def _glyph_autoencoder() -> AutoencoderKL:
    return load_autoencoder(embedded("teacher/vae"))


Distortion = Callable[[Tensor, Tensor, torch.Generator], Tensor]
FAMILIES: dict[str, Distortion] = {
    "blur": blur,
    "noise": noise,
    "warp": warp,
    "compression": compression,
    "colour": colour,
    "autoencoder": autoencoder,
}


def distort(images: Tensor, family: str, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Apply a distortion of a family.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        family: one of FAMILIES.
        strength: (N,) in [0, 1].
        generator: on the CPU.

    Returns:
        (N, 3, H, W) in [-1, 1].
    """
    return FAMILIES[family](images, strength, generator).clamp(-1, 1)
