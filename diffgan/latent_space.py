"""The latent space of an autoencoder, and the one way from decoded images to bytes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from diffgan.errors import UserError


@dataclass(frozen=True)
class LatentSpace:
    """What a diffusion model's latents are to their autoencoder: model = (autoencoder - shift) * scale.

    channels: latent channels.  factor: image pixels per latent position and side.  scale, shift: see above.
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
        """The latent space that an autoencoder's configuration states.

        Raises:
            UserError: it scales every channel by itself.
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
        """Autoencoder latents -> what the diffusion model sees."""
        return (latent - self.shift) * self.scale

    def to_autoencoder(self, latent: Tensor) -> Tensor:
        """What the diffusion model sees -> autoencoder latents."""
        return latent / self.scale + self.shift

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


PIXELS = LatentSpace(channels=3, factor=1, scale=1.0)  # images (N, 3, H, W) in [-1, 1], as latents of no autoencoder
