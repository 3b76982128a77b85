"""Time and peak memory of a training step with the discriminator, relative to its bare network passes."""

import statistics
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from diffgan.conditioning import Conditioning
from diffgan.losses import gan
from diffgan.losses.gradient_penalty import EXACT, full_precision, r1_loss
from diffgan.losses.regression import Perceptual
from diffgan.methods.adversarial import AdversarialTraining
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.perceptual.lpips import ELatentLPIPS
from tests.bench.overhead import TRAINING_BATCH as BATCH
from tests.bench.overhead import WARM_UP, first_batch, fit, training_pairs, training_ratio
from tests.bench.perceptual import peak_bytes

EVERY, ROUNDS = 16, 5


def distillation(images: int, checkpointing: bool = False) -> Diffusion2GAN:
    optimizer = partial(torch.optim.AdamW, lr=1e-4, fused=True)
    regression = Perceptual(ELatentLPIPS("glyphs"))
    adversarial = AdversarialTraining(MultiScaleDiscriminator, optimizer)
    return Diffusion2GAN(
        "glyphs", regression, optimizer, images, adversarial=adversarial, gradient_checkpointing=checkpointing
    )


class Peak(pl.Callback):
    """Peak memory of the third batch."""

    def on_train_start(self, trainer, pl_module) -> None:
        step, self.calls = pl_module.training_step, 0

        def measured(*arguments) -> None:
            self.calls += 1
            if self.calls == 3:
                self.bytes = peak_bytes(lambda: step(*arguments))
            else:
                step(*arguments)

        pl_module.training_step = measured


def network_passes(module: Diffusion2GAN, noise: Tensor, latent: Tensor, conditioning: Conditioning) -> None:
    """The network passes of a training step, with a discriminator if the module has one; gradients are dropped."""
    z, x, c = noise, latent, conditioning
    generated = module.generator(z, c)
    if module.adversarial is not None:
        for sample, is_real in ((x, True), (generated.detach(), False)):
            gan.classification_loss(module.discriminator(sample, z, c), is_real).backward()
    output = generated.detach().requires_grad_(True)
    module.regression(output, x).mean().backward()
    if module.adversarial is not None:
        module.discriminator.requires_grad_(False)
        gan.generator_loss(module.discriminator(output, z, c)).backward()
        module.discriminator.requires_grad_(True)
    generated.backward(output.grad)
    module.zero_grad()


class Passes:
    """The network passes of a training step, without anything around them."""

    def __init__(self, folder: Path, checkpointing: bool = False):
        self.module = distillation(images=1, checkpointing=checkpointing)
        self.module.configure_model()
        batch = first_batch(folder)
        self.noise, self.latent, self.prompts = batch.noise, batch.latent, batch.prompt

    def __call__(self, batch_idx: int) -> None:
        self.main()
        if batch_idx % EVERY == 0:
            self.penalty()

    def main(self) -> None:
        network_passes(self.module, self.noise, self.latent, self.module.teacher.encode(self.prompts))

    def penalty(self) -> None:
        module, c = self.module, self.module.teacher.encode(self.prompts[:1])
        with full_precision(self.latent.device, second_derivatives=True):
            r1_loss(EXACT, module.discriminator, self.latent[:1], self.noise[:1], c, gamma=16.0).loss.backward()
        module.zero_grad()


def main() -> None:
    torch.manual_seed(0)
    with training_pairs() as folder:
        images = BATCH * (WARM_UP + 2 * EVERY)
        ratios = [training_ratio(distillation(images), Passes(folder), folder) for _ in range(ROUNDS)]
        ratio = statistics.median(ratios)
        print(f"full step / sum of its network passes     {ratio:.3f}   (aim: at most 1.05)", flush=True)
        for checkpointing in (False, True):
            peak = Peak()
            fit(distillation(BATCH * 3, checkpointing), folder, peak)
            bare = peak_bytes(Passes(folder, checkpointing).main)
            mode = "gradient checkpointing" if checkpointing else "everything kept"
            print(f"peak memory of the step, {mode:22} {peak.bytes / 2**20:6.0f} MB, its passes {bare / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
