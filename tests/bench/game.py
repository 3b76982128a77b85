"""The whole training step (D, G, gradient penalty) against the sum of its bare network passes: time and peak memory."""

import statistics
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch

from diffgan.losses import gan as losses
from diffgan.losses import gradient_penalty
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
    regression, adversary = Perceptual(ELatentLPIPS("glyphs")), AdversarialTraining(MultiScaleDiscriminator, optimizer)
    return Diffusion2GAN(
        "glyphs", regression, optimizer, images, adversary=adversary, gradient_checkpointing=checkpointing
    )


class Peak(pl.Callback):
    """Peak memory of the third batch."""

    def on_train_start(self, trainer, pl_module) -> None:
        step, self.calls = pl_module.training_step, 0

        def watched(*given) -> None:
            self.calls += 1
            if self.calls == 3:
                self.bytes = peak_bytes(lambda: step(*given))
            else:
                step(*given)

        pl_module.training_step = watched


class Passes:
    """What the algorithm asks of the networks, without anything around it."""

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
        module, z, x = self.module, self.noise, self.latent
        c = module.teacher.encode(self.prompts)
        generated = module.generator(z, c)
        real, fake = module.adversary.judge(module.discriminator, x, generated.detach(), z, c)
        (losses.non_saturating(real, 1) + losses.non_saturating(fake, -1)).mean().backward()
        at = generated.detach().requires_grad_(True)
        module.discriminator.requires_grad_(False)
        (slope,) = torch.autograd.grad(module.regression(at, x).mean(), at)
        (push,) = torch.autograd.grad(losses.non_saturating(module.discriminator(at, z, c), 1).mean(), at)
        generated.backward(slope + push)
        module.discriminator.requires_grad_(True)
        module.zero_grad()

    def penalty(self) -> None:
        module, c = self.module, self.module.teacher.encode(self.prompts[:1])
        with gradient_penalty.second_derivatives(self.latent.device):
            module.adversary.r1_loss(module.discriminator, self.latent[:1], self.noise[:1], c).backward()
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
            what = "gradient checkpointing" if checkpointing else "everything kept"
            print(f"peak memory of the step, {what:22} {peak.bytes / 2**20:6.0f} MB, its passes {bare / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
