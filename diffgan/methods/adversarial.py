"""The discriminator's side of the game: what it is, how it learns, how much it is listened to."""

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.losses import gan as losses
from diffgan.losses import gradient_penalty
from diffgan.nets.discriminator import MultiScaleDiscriminator, ReadOut
from diffgan.training.lr_schedules import warmup_cooldown


class AdversarialTraining:
    """The adversarial part of Diffusion2GAN.

    Args:
        discriminator: called with the teacher's network.
        optimizer: called with the discriminator's parameters.
        weight: lambda_GAN.
        balanced: multiply `weight` by |grad L_reg| / |grad L_GAN| at the generated latent, in every step: the share of
            the discriminator in G's gradient is then the same whatever the losses' scales (about 50 in the miniature).
        starts_at_images: regression alone until then.
        warmup_images: linear rise of the discriminator's learning rate from there.
        clip_norm: largest norm of the discriminator's gradient.
        r1_gamma: gamma of the gradient penalty; 0 leaves it out.
        r1_every: discriminator steps from one penalty to the next (lazy regularisation).
        r1_samples: samples of the global batch that are penalised then; at least one per process.
        r1_noise: penalise the gradient with respect to z too.
        mismatch_share: share of the fakes that mix-and-match replaces; 0 leaves it out.
    """

    def __init__(
        self,
        discriminator: Callable[[UNet2DConditionModel], MultiScaleDiscriminator],
        optimizer: OptimizerCallable,
        weight: float = 0.5,
        balanced: bool = True,
        starts_at_images: int = 0,
        warmup_images: int = 1000,
        clip_norm: float = 10.0,
        r1_gamma: float = 1.0,
        r1_every: int = 16,
        r1_samples: int = 1,
        r1_noise: bool = False,
        mismatch_share: float = 0.25,
    ):
        counts = {"starts_at_images": (starts_at_images, 0), "r1_every": (r1_every, 1), "r1_samples": (r1_samples, 1)}
        for name, (value, least) in {**counts, "weight": (weight, 0), "r1_gamma": (r1_gamma, 0)}.items():
            if value < least:
                raise UserError(f"adversary: {name} is {value} and must be at least {least}")
        if not clip_norm > 0:
            raise UserError(f"adversary: clip_norm is {clip_norm} and must be above 0")
        if not 0 <= mismatch_share < 1:
            raise UserError(f"adversary: mismatch_share is {mismatch_share} and must be in [0, 1)")
        self.build, self.optimizer = discriminator, optimizer
        self.weight, self.balanced, self.clip_norm = weight, balanced, clip_norm
        self.starts_at_images, self.warmup_images = starts_at_images, warmup_images
        self.r1_gamma, self.r1_every, self.r1_samples, self.r1_noise = r1_gamma, r1_every, r1_samples, r1_noise
        self.mismatch_share = mismatch_share

    def learning_rate_factor(self, cooldown_images: int, images: int) -> Callable[[int], float]:
        """Factor of D's learning rate by images seen: its own rise, the generator's fall."""
        factor = warmup_cooldown(self.warmup_images, cooldown_images, images - self.starts_at_images)
        return lambda seen: factor(seen - self.starts_at_images)

    def opponent(self, unet: UNet2DConditionModel) -> MultiScaleDiscriminator:
        """The discriminator; raises UserError if it cannot be penalised as asked."""
        discriminator = self.build(unet)
        if self.r1_noise and discriminator.noise_in is None:
            raise UserError("adversary: r1_noise penalises the gradient in z, but noise_conditioning is false")
        return discriminator

    def r1_share(self, processes: int) -> int:
        """How many samples each process penalises."""
        return max(1, self.r1_samples // processes)

    def check_batch(self, share: int, processes: int) -> None:
        """Raises UserError if a process's share of the batch has no place for what is asked."""
        if (self.r1_samples % processes and self.r1_samples > processes) or share % self.r1_share(processes):
            raise UserError(
                f"adversary: r1_samples {self.r1_samples} cannot be spread evenly over {processes} processes with "
                f"{share} pairs each"
            )
        if self.mismatch_share and (share % 2 or round(share * self.mismatch_share) < 1):
            raise UserError(
                f"adversary: mismatch_share {self.mismatch_share} needs an even number of pairs per process, enough "
                f"for one of them to be replaced; there are {share} (choose another batch_size, or mismatch_share: 0.0)"
            )

    # ---- L_D = softplus(-D(x, z, c)) + softplus(D(x^, z, c)), x^ in part replaced by x' ----

    def judge(
        self, discriminator: MultiScaleDiscriminator, latent: Tensor, fakes: Tensor, noise: Tensor, about: Conditioning
    ) -> tuple[list[ReadOut], list[ReadOut]]:
        """Read-outs of the real latents and of the fakes, from one call of D."""
        read_outs = discriminator(
            torch.cat([latent, fakes]), torch.cat([noise, noise]), Conditioning.cat([about, about])
        )
        return losses.rows(read_outs, slice(None, len(latent))), losses.rows(read_outs, slice(len(latent), None))

    # ---- (gamma / 2) |grad_x D(x, z, c)|^2 ----

    def r1_turn(self, images_seen: int, batch: int) -> int | None:
        """How many penalties there were before this step; None if it has none."""
        step = (images_seen - self.starts_at_images) // batch
        return step // self.r1_every if self.r1_gamma > 0 and step % self.r1_every == 0 else None

    def r1_loss(
        self, discriminator: MultiScaleDiscriminator, latent: Tensor, noise: Tensor, about: Conditioning
    ) -> Tensor:
        """The lazy penalty of some real samples: (), scaled by its interval; call inside `second_derivatives`."""

        about = about.map(Tensor.float)

        def opinion(latent: Tensor, noise: Tensor) -> Tensor:
            return losses.score(discriminator(latent, noise, about))

        penalty = gradient_penalty.r1_penalty(opinion, latent.float(), noise.float(), self.r1_noise)
        return 0.5 * self.r1_gamma * self.r1_every * penalty.mean()
