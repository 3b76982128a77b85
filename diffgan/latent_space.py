"""The latent space of an autoencoder: shape and scaling of latents."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from diffgan.errors import UserError

MAX_SIDES = {"channels": 1024, "factor": 256}
LARGEST = 1e6  # of scale, shift, mean and std


@dataclass(frozen=True)
class LatentSpace:
    """How the latents of a diffusion model relate to those of its autoencoder.

    latent of the model = (latent of the autoencoder - shift) * scale, or, where each channel has its own statistics,
    latent of the model = (latent of the autoencoder - mean) / std * scale

    Attributes:
        channels: channels of a latent.
        factor: side of an image divided by the side of its latent.
        scale, shift: see the equations.
        mean, std: one number for each channel, or None. With them `shift` is 0.
    """

    channels: int
    factor: int
    scale: float
    shift: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __str__(self) -> str:
        """Without what is not there."""
        return f"LatentSpace({', '.join(f'{name}={value}' for name, value in self.as_dict().items())})"

    @classmethod
    def of(cls, vae) -> "LatentSpace":
        """The latent space of a diffusers autoencoder."""
        return cls.of_config(vae.config)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "LatentSpace":
        """The latent space of the diffusers autoencoder with this configuration.

        Raises:
            UserError: a number is of another type or out of range.
        """
        return cls(
            channels=config["latent_channels"],
            factor=2 ** (len(config["block_out_channels"]) - 1),
            scale=config["scaling_factor"],
            shift=config.get("shift_factor") or 0.0,
            mean=config.get("latents_mean"),
            std=config.get("latents_std"),
        ).checked("vae")

    def checked(self, place: str) -> "LatentSpace":
        """The same space, with floating-point numbers.

        Args:
            place: what states the space, for the message.

        Raises:
            UserError: a number is of another type, not finite, or out of range.
        """
        for name, value in (("channels", self.channels), ("factor", self.factor)):
            if type(value) is not int or not 1 <= value <= MAX_SIDES[name]:
                raise UserError(f"{place}: {name} of latents is {value!r} and must be between 1 and {MAX_SIDES[name]}")
        for name, value in (("scale", self.scale), ("shift", self.shift)):
            if not _is_finite(value) or (name == "scale" and value == 0):
                what = "a finite number" + " other than 0" * (name == "scale")
                raise UserError(
                    f"{place}: {name} of latents (scaling_factor, shift_factor) is {value!r} and must be {what}"
                )
        mean, std = self._checked_statistics(place)
        return LatentSpace(self.channels, self.factor, float(self.scale), float(self.shift), mean, std)

    def _checked_statistics(self, place: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """`mean` and `std` as tuples. Raises: UserError as `checked`."""
        if self.mean is None and self.std is None:
            return None, None
        if self.mean is None or self.std is None or self.shift != 0:
            raise UserError(f"{place}: latents_mean and latents_std must both be given, without shift_factor")
        for name, values in (("latents_mean", self.mean), ("latents_std", self.std)):
            is_list = isinstance(values, list | tuple) and len(values) == self.channels
            if not is_list or not all(_is_finite(value) and (name == "latents_mean" or value > 0) for value in values):
                what = "finite numbers" + " above 0" * (name == "latents_std")
                raise UserError(f"{place}: {name} is {values!r:.80} and must be {self.channels} {what}")
        return tuple(map(float, self.mean)), tuple(map(float, self.std))

    def to_model(self, latent: Tensor) -> Tensor:
        """Latents of the autoencoder (..., C, H, W) -> latents of the diffusion model."""
        if self.mean is None:
            return (latent - self.shift) * self.scale
        return (latent - _by_channel(self.mean, latent)) / _by_channel(self.std, latent) * self.scale

    def to_autoencoder(self, latent: Tensor) -> Tensor:
        """Latents of the diffusion model (..., C, H, W) -> latents of the autoencoder."""
        if self.mean is None:
            return latent / self.scale + self.shift
        return latent * _by_channel(self.std, latent) / self.scale + _by_channel(self.mean, latent)

    def equation(self) -> str:
        """`to_model` as text, for messages."""
        if self.mean is None:
            return f"(latent - {self.shift:.9g}) * {self.scale:.9g}"
        return f"(latent - {list(self.mean)}) / {list(self.std)} * {self.scale:.9g}"

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name as JSON has them, without those that are None.

        `LatentSpace(**values).checked(place)` is the same space.
        """
        present = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in present.items()}


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def _by_channel(values: Sequence[float], latent: Tensor) -> Tensor:
    """(C, 1, 1) in the dtype of a latent."""
    return latent.new_tensor(values).view(-1, 1, 1)


PIXELS = LatentSpace(channels=3, factor=1, scale=1.0)  # images (N, 3, H, W) in [-1, 1] in place of latents
