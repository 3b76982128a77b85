"""What every discriminator is: a module that scores latents as real or fake in several maps of logits."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from diffgan.conditioning import Conditioning


class ReadOut(NamedTuple):
    """Real/fake logits at one place of the network.

    Attributes:
        scale: of a UNet's decoder, 0 is the coarsest; of a transformer, the depth, 0 is the first.
        place: where in the stage, such as "after".
        logits: (N, 1, h, w); above zero means real.
    """

    scale: int
    place: str
    logits: Tensor


class Discriminator(nn.Module, ABC):
    """D(x, z, c), built from the teacher's network."""

    @property
    @abstractmethod
    def sees_noise(self) -> bool:
        """Whether it is conditioned on the noise z that the generated sample was made of."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The units of sharding."""

    @abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""

    @abstractmethod
    def forward(self, latent: Tensor, noise: Tensor, conditioning: Conditioning) -> list[ReadOut]:
        """Score latents as real or fake.

        Args:
            latent: x, (N, C, H, W).
            noise: z, (N, C, H, W); ignored without noise conditioning.
            conditioning: c, N rows.
        """
