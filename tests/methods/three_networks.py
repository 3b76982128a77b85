"""A method with three networks, which shows that the base class makes no assumption about their number."""

import torch
from torch import nn

from diffgan.losses import gan
from diffgan.losses.regression import RegressionLoss
from diffgan.methods.base import Distillation
from diffgan.methods.optimization import OptimizerSettings
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.pairs.batch import PairBatch

CLIP_NORMS = {"g": 1.0, "d": 10.0, "s": 1e-3}


class ThreeNetworks(Distillation):
    """A generator, a discriminator, and a second student that imitates the generator."""

    def __init__(self, teacher: str, regression: RegressionLoss, images: int, starts_at_images: int = 0):
        settings = {}
        for name, clip_norm in CLIP_NORMS.items():
            start = starts_at_images if name == "s" else 0
            settings[name] = OptimizerSettings(torch.optim.Adam, lambda images_seen: 0.1, clip_norm, start)
        super().__init__(teacher, regression, images, settings)

    def build_networks(self) -> dict[str, nn.Module]:
        self.generator = self.build_generator()
        self.discriminator = MultiScaleDiscriminator(self.teacher.unet)
        self.student = self.build_generator()
        return {"g": self.generator, "d": self.discriminator, "s": self.student}

    def training_step(self, batch: PairBatch, _) -> None:
        self.observed = {}
        noise, conditioning = batch.noise, self.encode(batch)
        with torch.no_grad():
            generated = self.generator(noise, conditioning)
        self._step("d", lambda: gan.discriminator_loss(*self._read_outs(batch.latent, generated, noise, conditioning)))
        if self.images_seen >= self.settings["s"].starts_at_images:
            self._step("s", lambda: (self.student(noise, conditioning) - generated).square().mean())
        self._step("g", lambda: self.regression(self.generator(noise, conditioning), batch.latent).mean())
        self.finish_step(len(batch.prompt) * self.trainer.world_size)

    def _read_outs(self, *inputs):
        real, fake, noise, conditioning = inputs
        return (self.discriminator(latent, noise, conditioning) for latent in (real, fake))

    def _step(self, name, loss) -> None:
        with self.optimizing(name) as optimizer:
            self.manual_backward(loss())
            optimizer.step()
