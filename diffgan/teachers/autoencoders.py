"""Autoencoders by name, and the encoder that datamodules share."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffgan.errors import UserError, first_line
from diffgan.latent_space import PIXELS, LatentSpace
from diffgan.storage.embedded import EMBEDDED, embedded
from diffgan.teachers.pipeline_checks import check_network


def autoencoder_config(name: str | Path) -> Mapping[str, Any]:
    """The configuration of an `AutoencoderKL`.

    Args:
        name: a directory, "owner/model/vae" on the hub, or "glyphs" for the embedded one.

    Raises:
        UserError: there is no such autoencoder.
    """
    return _load(AutoencoderKL.load_config, name)


def load_autoencoder(name: str | Path) -> AutoencoderKL:
    """A frozen `AutoencoderKL` in eval mode; arguments and errors as in `autoencoder_config`."""
    vae = _load(_from_pretrained, name)
    return vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def latent_space(name: str | Path | None) -> LatentSpace:
    """The latent space of an autoencoder by its name; pixels if the name is None."""
    return PIXELS if name is None else LatentSpace.of_config(autoencoder_config(name))


def check_channels(space: LatentSpace, component: str, channels: int) -> None:
    """Raise a UserError if a network, a component of a pipeline, has latents of another number of channels."""
    if channels != space.channels:
        raise UserError(
            f"{component}: its latents have {channels} channels, but those of the vae have {space.channels}"
        )


def check_decoder_settings(space: LatentSpace, pipeline: str, used: Collection[str]) -> None:
    """Raise a UserError if the autoencoder has a setting that pipelines of a class ignore when they decode.

    Args:
        pipeline: name of the class.
        used: those of "shift_factor" and "latents_mean" (with "latents_std") that it uses.
    """
    present = {"shift_factor": space.shift != 0, "latents_mean": space.mean is not None}
    for name, is_present in present.items():
        if is_present and name not in used:
            raise UserError(f"vae: has {name}, which a {pipeline} of diffusers does not use")


def decode_with_gradient(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """Latents of the diffusion model (N, C, H, W) -> images (N, 3, H', W'), not clamped and differentiable."""
    return vae.decode(LatentSpace.of(vae).to_autoencoder(latent), return_dict=False)[0]


class ImageLatents(nn.Module):
    """A pipeline's autoencoder between images and the diffusion model's latents, in its own precision.

    Attributes:
        vae: the autoencoder.
        space: its latent space.
    """

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae, self.space = vae, LatentSpace.of(vae)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> latents (N, C, H / factor, W / factor), the mode of each distribution."""
        inputs = images.to(self.vae.device, self.vae.dtype, memory_format=torch.channels_last)
        return self.space.to_model(self.vae.encode(inputs).latent_dist.mode())

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latents (N, C, H, W) -> images (N, 3, H * factor, W * factor), in about [-1, 1]."""
        return self.vae.decode(self.space.to_autoencoder(latent.to(self.vae.dtype)), return_dict=False)[0]


class Encoder(nn.Module):
    """Images to the diffusion model's latents; without an autoencoder, images unchanged.

    Args:
        name: of the autoencoder, as in `autoencoder_config`, or None.

    Attributes:
        space: the latent space.
    """

    def __init__(self, name: str | Path | None):
        super().__init__()
        self.space = latent_space(name)
        self.vae = None if name is None else load_autoencoder(name)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> latents (N, C, H / factor, W / factor), the mode of each distribution."""
        if self.vae is None:
            return images
        images = images.contiguous(memory_format=torch.channels_last)
        return self.space.to_model(self.vae.encode(images).latent_dist.mode())


def _load(load: Callable[..., Any], name: str | Path) -> Any:
    """Call a loader of diffusers with a directory, or with a hub id and its subfolder."""
    path, options = _split_hub_name(embedded("teacher/vae") if name == EMBEDDED else name)
    try:
        return load(path, **options)
    except UserError as error:
        raise UserError(f"vae {name}: {error}") from error
    except Exception as error:  # the library raises many kinds for files that it does not expect
        raise UserError(f"vae {name}: not a directory or hub name of an AutoencoderKL ({first_line(error)})") from error


def _from_pretrained(path: str, **options: Any) -> AutoencoderKL:
    """The autoencoder of a directory, whose files are checked first, or of a hub id."""
    if Path(path).is_dir():
        check_network(Path(path), AutoencoderKL)
    return AutoencoderKL.from_pretrained(path, use_safetensors=True, **options)


def _split_hub_name(name: str | Path) -> tuple[str, dict[str, str]]:
    """The hub name "owner/model/vae" as "owner/model" and its subfolder; any other name unchanged."""
    owner_model_subfolder = str(name).split("/")
    if Path(name).is_dir() or len(owner_model_subfolder) != 3:
        return str(name), {}
    owner, model, subfolder = owner_model_subfolder
    return f"{owner}/{model}", {"subfolder": subfolder}
