"""The latent space of an autoencoder: shape and scaling of latents."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from diffgan.errors import UserError

MAX_SIDES = {"channels": 1024, "factor": 256}
LARGEST = 1e6  # of scale and shift


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
            UserError: the autoencoder has a scale for each channel, which is not supported, or a number is out of
                range.
        """
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise UserError("vae: latents_mean and latents_std (a scale for each channel) are not supported")
        return cls(
            channels=config["latent_channels"],
            factor=2 ** (len(config["block_out_channels"]) - 1),
            scale=config["scaling_factor"],
            shift=config.get("shift_factor") or 0.0,
        ).checked("vae")

    def checked(self, place: str) -> "LatentSpace":
        """The same space, with floating-point scale and shift.

        Args:
            place: what states the space, for the message.

        Raises:
            UserError: a number is of another type, not finite, or out of range.
        """
        for name, value in (("channels", self.channels), ("factor", self.factor)):
            if type(value) is not int or not 1 <= value <= MAX_SIDES[name]:
                raise UserError(f"{place}: {name} of latents is {value!r} and must be between 1 and {MAX_SIDES[name]}")
        for name, value in (("scale", self.scale), ("shift", self.shift)):
            if type(value) not in (int, float) or not abs(value) < LARGEST or (name == "scale" and value == 0):
                what = "a finite number" + " other than 0" * (name == "scale")
                raise UserError(
                    f"{place}: {name} of latents (scaling_factor, shift_factor) is {value!r} and must be {what}"
                )
        return LatentSpace(self.channels, self.factor, float(self.scale), float(self.shift))

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
