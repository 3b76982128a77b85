"""What the steps of Diffusion2GAN compute for a micro-batch, and the curves made of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffgan.losses import gan
from diffgan.methods.micro_batches import MicroBatch
from diffgan.nets.read_outs import Discriminator


class DiscriminatorOutput(NamedTuple):
    """Of the real or the fake samples of a micro-batch.

    is_real: which.  loss: their term of L_D, ().  scores: D's, (N,).  kinds: of the samples if they are fake, see
    `mix_and_match.fake_kinds`, (N,) on the CPU.
    """

    is_real: bool
    loss: Tensor
    scores: Tensor
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


def real_and_fake(
    micro_batches: Sequence[MicroBatch], generated: Sequence[Tensor]
) -> tuple[list[MicroBatch], list[Tensor | None]]:
    """Every micro-batch twice, and beside it None for its real samples, then x^ for its fake ones."""
    twice = [micro_batch for micro_batch in micro_batches for _ in range(2)]
    return twice, [latent for fake in generated for latent in (None, fake)]


def discriminator_output(
    discriminator: Discriminator, micro_batch: MicroBatch, generated: Tensor | None
) -> DiscriminatorOutput:
    """One term of L_D, and D's scores. Real and fake samples are two calls, which halves the activations.

    generated: x^, (N, C, H, W), for the fake samples; None for the real ones.
    """
    is_real = generated is None
    samples = micro_batch.real() if is_real else micro_batch.fake(generated.detach())
    read_outs = discriminator(*samples)
    loss = gan.classification_loss(read_outs, is_real)
    return DiscriminatorOutput(is_real, loss, gan.score(read_outs).detach(), micro_batch.kinds)


def discriminator_curves(results: Sequence[DiscriminatorOutput]) -> dict[str, Tensor]:
    """`d/loss`, scores and accuracies over all micro-batches, each ()."""
    real, fake = ([result for result in results if result.is_real == is_real] for is_real in (True, False))
    loss = torch.stack([result.loss.detach() for result in results]).sum() / len(real)
    scores = (torch.cat([result.scores for result in half]) for half in (real, fake))
    return {"d/loss": loss} | gan.discriminator_statistics(*scores, torch.cat([result.kinds for result in fake]))


def generator_curves(gradients: Sequence[OutputGradients]) -> dict[str, Tensor]:
    """`g/regression`, and `g/gan` if there is a discriminator: means over all micro-batches, each ()."""
    curves = {"g/regression": torch.stack([gradient.regression_loss for gradient in gradients]).mean()}
    if gradients[0].gan_loss is not None:
        curves["g/gan"] = torch.stack([gradient.gan_loss for gradient in gradients]).mean()
    return curves


def squared_norms(gradients: Sequence[OutputGradients]) -> tuple[Tensor, Tensor]:
    """|dL_reg/dx^|^2 and |dL_GAN/dx^|^2 of a sample's own losses, averaged over all samples: () float32 each."""
    regression = torch.stack([_mean_squared_norm(gradient.regression) for gradient in gradients]).mean()
    adversarial = torch.stack([_mean_squared_norm(gradient.gan) for gradient in gradients]).mean()
    return regression, adversarial


def _mean_squared_norm(gradient: Tensor) -> Tensor:
    """Of the gradient of a mean over N samples, (N, C, H, W), as if each sample's loss were a loss of its own: ()."""
    samples = len(gradient)
    return gradient.float().mul(samples).square().sum() / samples
