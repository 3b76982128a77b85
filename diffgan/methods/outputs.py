"""What the steps of Diffusion2GAN compute for a micro-batch, and the curves made of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffgan.conditioning import Conditioning
from diffgan.losses import gan
from diffgan.methods.micro_batches import MicroBatch
from diffgan.nets.discriminator import MultiScaleDiscriminator


class DiscriminatorOutput(NamedTuple):
    """Of a discriminator step.

    loss: L_D, ().  real, fake: D's scores of the samples, (N,).  kinds: of the fake samples, (N,) on the CPU.
    """

    loss: Tensor
    real: Tensor
    fake: Tensor
    kinds: Tensor


class OutputGradients(NamedTuple):
    """Of a generator step.

    regression, gan: dL_reg/dx^ and dL_GAN/dx^, (N, C, H, W).  regression_loss, gan_loss: L_reg and L_GAN, ().
    """

    regression: Tensor
    gan: Tensor | None
    regression_loss: Tensor
    gan_loss: Tensor | None

    def total(self, gan_weight: Tensor | float) -> Tensor:
        """dL_G/dx^ = dL_reg/dx^ + lambda_GAN dL_GAN/dx^: (N, C, H, W)."""
        return self.regression if self.gan is None else self.regression + gan_weight * self.gan


def discriminator_output(
    discriminator: MultiScaleDiscriminator, micro_batch: MicroBatch, generated: Tensor
) -> DiscriminatorOutput:
    """L_D and D's scores, from one call of D on the real and the fake samples.

    generated: x^, without its graph, (N, C, H, W).
    """
    real, fake = micro_batch.real(), micro_batch.fake(generated)
    latent, noise = torch.cat([real.latent, fake.latent]), torch.cat([real.noise, fake.noise])
    read_outs = discriminator(latent, noise, Conditioning.cat([real.conditioning, fake.conditioning]))
    of_real, of_fake = gan.split(read_outs, len(micro_batch.kinds))
    loss = gan.discriminator_loss(of_real, of_fake)
    return DiscriminatorOutput(loss, gan.score(of_real).detach(), gan.score(of_fake).detach(), micro_batch.kinds)


def discriminator_curves(outputs: Sequence[DiscriminatorOutput]) -> dict[str, Tensor]:
    """`d/loss`, scores and accuracies over all micro-batches, each ()."""
    losses, *scores = zip(*outputs, strict=True)
    real, fake, kinds = (torch.cat(tensors) for tensors in scores)
    loss = torch.stack(losses).detach().mean()
    return {"d/loss": loss} | gan.discriminator_statistics(real, fake, kinds)


def generator_curves(gradients: Sequence[OutputGradients]) -> dict[str, Tensor]:
    """`g/regression`, and `g/gan` if there is a discriminator: means over all micro-batches, each ()."""
    curves = {"g/regression": torch.stack([gradient.regression_loss for gradient in gradients]).mean()}
    if gradients[0].gan_loss is not None:
        curves["g/gan"] = torch.stack([gradient.gan_loss for gradient in gradients]).mean()
    return curves


def squared_norms(gradients: Sequence[OutputGradients]) -> tuple[Tensor, Tensor]:
    """|dL_reg/dx^|^2 and |dL_GAN/dx^|^2 over all micro-batches: () float32 each."""
    regression = sum(gradient.regression.float().square().sum() for gradient in gradients)
    adversarial = sum(gradient.gan.float().square().sum() for gradient in gradients)
    return regression, adversarial
