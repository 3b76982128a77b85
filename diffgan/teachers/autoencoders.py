"""Autoencoders by name, and the encoder that datamodules share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.latent_space import PIXELS, LatentSpace


def _place(name: str | Path) -> tuple[str, dict[str, str]]:
    """A local folder as it is; a hub name "owner/model/vae" as the model and its subfolder."""
    parts = str(name).split("/")
    if Path(name).is_dir() or len(parts) != 3:
        return str(name), {}
    return "/".join(parts[:2]), {"subfolder": parts[2]}


def _found(load, name: str | Path):
    try:
        place, options = _place(name)
        return load(place, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"vae {name}: is no directory or hub name of an AutoencoderKL") from error


def autoencoder_config(name: str | Path) -> Mapping[str, Any]:
    """Configuration of an `AutoencoderKL`: a directory, or "owner/model/vae" on the hub."""
    return _found(AutoencoderKL.load_config, name)


def load_autoencoder(name: str | Path) -> AutoencoderKL:
    """A frozen `AutoencoderKL` in eval mode; name: as in `autoencoder_config`."""
    vae = _found(AutoencoderKL.from_pretrained, name)
    return vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def latent_space(name: str | Path | None) -> LatentSpace:
    """The latent space of an autoencoder by its name; without one, pixels."""
    return PIXELS if name is None else LatentSpace.of_config(autoencoder_config(name))


class Encoder(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] -> what the diffusion model sees; without an autoencoder, pixels."""

    def __init__(self, name: str | Path | None):
        super().__init__()
        self.space = latent_space(name)
        self.vae = None if name is None else load_autoencoder(name)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if self.vae is None:
            return images
        images = images.contiguous(memory_format=torch.channels_last)
        return self.space.to_model(self.vae.encode(images).latent_dist.mode())
