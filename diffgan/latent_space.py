"""The latent space of an autoencoder: shape and scaling of latents."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from diffgan.errors import UserError


@dataclass(frozen=True)
class LatentSpace:
    """How the latents of a diffusion model relate to those of its autoencoder.

    latent of the model = (latent of the autoencoder - shift) * scale

    Attributes:
        channels: channels of a latent.
        factor: side of an image divided by the side of its latent.
        scale, shift: see the equation.
    """

    channels: int
    factor: int
    scale: float
    shift: float = 0.0

    @classmethod
    def of(cls, vae) -> "LatentSpace":
        """The latent space of a diffusers autoencoder."""
        return cls.of_config(vae.config)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "LatentSpace":
        """The latent space of the diffusers autoencoder with this configuration.

        Raises:
            UserError: the autoencoder has a scale for each channel, which is not supported.
        """
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise UserError("vae: latents_mean and latents_std (a scale for each channel) are not supported")
        return cls(
            channels=config["latent_channels"],
            factor=2 ** (len(config["block_out_channels"]) - 1),
            scale=float(config["scaling_factor"]),
            shift=float(config.get("shift_factor") or 0.0),
        )

    def to_model(self, latent: Tensor) -> Tensor:
        """Latents of the autoencoder -> latents of the diffusion model; any shape."""
        return (latent - self.shift) * self.scale

    def to_autoencoder(self, latent: Tensor) -> Tensor:
        """Latents of the diffusion model -> latents of the autoencoder; any shape."""
        return latent / self.scale + self.shift

    def as_dict(self) -> dict[str, float]:
        """The attributes by name; `LatentSpace(**space.as_dict()) == space`."""
        return asdict(self)


PIXELS = LatentSpace(channels=3, factor=1, scale=1.0)  # images (N, 3, H, W) in [-1, 1] in place of latents
