"""Diffusion2GAN: regression to the teacher's latents and a conditional GAN, in latent space (paper, section 3)."""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.losses import gan
from diffgan.losses.gradient_penalty import Penalty, full_precision, r1_loss
from diffgan.losses.regression import RegressionLoss
from diffgan.methods import outputs
from diffgan.methods.adversarial import DEFAULT_WARMUP, AdversarialTraining
from diffgan.methods.base import Distillation
from diffgan.methods.checks import warn_of_long_warmup
from diffgan.methods.gradient_balance import GradientBalance
from diffgan.methods.micro_batches import MicroBatch, Samples, mismatch, split, take
from diffgan.methods.optimization import OptimizerSettings
from diffgan.nets.lora import LoRA
from diffgan.numbers import require
from diffgan.pairs.batch import PairBatch
from diffgan.training.lr_schedules import scaled_from, warmup_cooldown
from diffgan.training.strategies import keep_unsharded, mean_over_processes
from diffgan.training.transfer import to_device

MOST_IMAGES = 10**12  # a training of more never ends


class Diffusion2GAN(Distillation):
    """Distil the teacher into a one-step generator from its noise-latent pairs (paper, section 3).

    One batch:
        x^ = G(z, c)                                                     one pass of the generator
        D: one step on L_D = softplus(-D(x, z, c)) + softplus(D(x~, z, c)), and R1 at every `r1_every`-th step
        G: one step on L_reg(x^, x) + lambda_GAN softplus(-D(x^, z, c))
        G_ema follows G
    x~ is x^ with some rows mismatched (mix-and-match): those have another text, noise or latent.

    Args:
        teacher: pipeline directory, hub id, or "glyphs" for the embedded one.
        regression: distance of the generated latent to the teacher's.
        generator_optimizer: called with the generator's parameters.
        images: length of the training, in images.
        adversarial: the discriminator and its settings; without it the training is regression alone.
        warmup_images: images of the linear rise of the learning rate at the start.
        cooldown_images: images of the linear fall of the learning rates to zero at the end.
        clip_norm: largest norm of the generator's gradient, above 0.
        accumulate: number of micro-batches in which a process computes its share of the batch.
        gradient_checkpointing: recompute the networks' activations in the backward pass instead of storing them.
        compile: apply torch.compile to both networks; the gradient penalty stays eager.
        channels_last: memory format of the networks (faster on CPUs and tensor cores).
        timesteps: where the student is called, a list of one training timestep; None: the last one.
        float32_output: under bf16-mixed the generator's last block and head compute in float32.
        size: [height, width] of images in pixels, that of the pairs; None: the teacher's usual one.
        lora: the generator learns by adapters beside the teacher's weights; None: all its weights are trained. The
            discriminator has a `lora` of its own.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        teacher: str,
        regression: RegressionLoss,
        generator_optimizer: OptimizerCallable,
        images: int,
        adversarial: AdversarialTraining | None = None,
        warmup_images: int = DEFAULT_WARMUP,
        cooldown_images: int = 0,
        clip_norm: float = 1.0,
        accumulate: int = 1,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        channels_last: bool = True,
        timesteps: list[int] | None = None,
        float32_output: bool = False,
        size: list[int] | None = None,
        lora: LoRA | None = None,
    ):
        require("clip_norm", clip_norm, above=0)
        require("images", images, least=1, most=MOST_IMAGES)
        require("warmup_images", warmup_images, least=0)
        require("cooldown_images", cooldown_images, least=0, most=images)
        learning_rate = warmup_cooldown(warmup_images, cooldown_images, images)
        if adversarial is not None:
            learning_rate = scaled_from(adversarial.starts_at_images, adversarial.generator_rate, learning_rate)
        optimizers = {"g": OptimizerSettings(generator_optimizer, learning_rate, clip_norm)}
        if adversarial is not None:
            optimizers["d"] = adversarial.optimizer_settings(cooldown_images, images)
        options = (accumulate, gradient_checkpointing, compile, channels_last, timesteps, float32_output, size, lora)
        super().__init__(teacher, regression, images, optimizers, *options)
        self.adversarial, self.warmup_images = adversarial, warmup_images
        self.gradient_balance = GradientBalance()
        self._tried_gradient_penalty = False

    def build_networks(self) -> dict[str, nn.Module]:
        """G and D, both initialised from the teacher's network."""
        denoiser = self.teacher.denoiser
        self.generator = self.build_generator()
        if self.adversarial is None:
            return {"g": self.generator}
        self.discriminator = self.adversarial.build_discriminator(denoiser)
        return {"g": self.generator, "d": self.discriminator}

    def check_batch(self, pairs_per_process: int) -> None:
        """Raises UserError if micro-batches, R1 or mix-and-match are impossible with that many pairs."""
        super().check_batch(pairs_per_process)
        if self.adversarial is not None:
            self.adversarial.check_batch(pairs_per_process, self.trainer.world_size)

    @property
    def uses_discriminator(self) -> bool:
        """Whether the next step is adversarial: there is a discriminator and `starts_at_images` has passed."""
        return self.adversarial is not None and self.images_seen >= self.adversarial.starts_at_images

    def check_new_run(self) -> None:
        """Check that each warm-up but the default ends before the training; an earlier run may have a longer one."""
        super().check_new_run()
        for name, warmup, images in self._warmups():
            if warmup > images and warmup != DEFAULT_WARMUP:  # a default is reported when the training starts
                raise UserError(f"{name}: {warmup} is more than the {images} images there are; set at most {images}")

    def on_train_start(self) -> None:
        """Prepare as every method does, and warn of a warm-up that does not end."""
        super().on_train_start()
        if self.trainer.is_global_zero:
            for name, warmup, images in self._warmups():
                warn_of_long_warmup(name, warmup, images)

    def _warmups(self) -> list[tuple[str, int, int]]:
        """For each warm-up: the argument's name, its images, and the images of its training."""
        warmups = [("warmup_images", self.warmup_images, self.images)]
        if (settings := self.adversarial) is not None:
            rest = self.images - settings.starts_at_images
            warmups.append(("adversarial: warmup_images", settings.warmup_images, rest))
        return warmups

    # ---- the algorithm ----

    def training_step(self, batch: PairBatch, _) -> None:
        """One batch: a step of D, a step of G, the moving average."""
        self.observed = {}
        micro_batches = self.split_batch(batch)
        generated = self.generate(micro_batches)
        if self.uses_discriminator:
            self.discriminator_step(micro_batches, generated)
        self.generator_step(micro_batches, generated)
        self.try_gradient_penalty(micro_batches)
        self.finish_step(len(batch.prompt) * self.trainer.world_size)

    def split_batch(self, batch: PairBatch) -> list[MicroBatch]:
        """The process's share of the batch, with its mismatched rows, as micro-batches."""
        pairs = Samples(batch.latent, batch.noise, self.encode(batch))
        rows = len(batch.prompt)
        if self.uses_discriminator:
            first = self.images_seen + self.global_rank * rows
            kinds = self.adversarial.fake_kinds(first, rows, self.discriminator)
        else:
            kinds = torch.zeros(rows, dtype=torch.int64, device="cpu")
        whole = MicroBatch(pairs, mismatch(pairs, kinds), kinds, self.input_noise(batch.latent))
        return split(whole, self.micro_batch_count)

    def input_noise(self, latent: Tensor) -> Tensor:
        """Noise of D's inputs, (N, C, H, W); zeros (N, 1, 1, 1) without."""
        if not self.uses_discriminator or self.adversarial.input_noise == 0:
            return latent.new_zeros(len(latent), 1, 1, 1)
        noise = torch.randn(latent.shape, generator=self.rng(1), device="cpu")
        return self.adversarial.input_noise * to_device(noise, latent.device).to(latent.dtype)

    def generate(self, micro_batches: list[MicroBatch]) -> list[Tensor]:
        """x^ = G(z, c), (N, C, H, W) each; with its graph for `generator_step` if there is one micro-batch."""
        with torch.set_grad_enabled(len(micro_batches) == 1):
            return [self.generator(pairs.noise, pairs.conditioning) for pairs, *_ in micro_batches]

    def discriminator_step(self, micro_batches: list[MicroBatch], generated: list[Tensor]) -> None:
        """One optimizer step of D on L_D, plus R1 at every `r1_every`-th step."""
        results = []
        with self.optimizing("d") as optimizer:
            for micro_batch, latent in self.accumulate("d", *outputs.real_and_fake(micro_batches, generated)):
                results.append(outputs.discriminator_output(self.discriminator, micro_batch, latent))
                self.manual_backward(results[-1].loss / len(micro_batches))
            self.gradient_penalty(micro_batches)
            optimizer.step()
        self.observed |= outputs.discriminator_curves(results)

    def gradient_penalty(self, micro_batches: list[MicroBatch]) -> None:
        """At every `r1_every`-th step add the gradient of r1_every (gamma / 2) |grad_x D|^2 on a rotating sample."""
        processes = self.trainer.world_size
        pairs = sum(len(micro_batch.kinds) for micro_batch in micro_batches)
        rows = self.adversarial.penalised_rows(self.images_seen, pairs, processes)
        if rows:
            penalty = self.penalise(take(micro_batches, rows))
            curves = {"d/r1": penalty.squared_norm, "d/r1_loss": penalty.loss.detach()}
            self.log_curves(curves, self.images_seen + pairs * processes)

    def penalise(self, samples: Samples) -> Penalty:
        """Add the gradient of r1_every (gamma / 2) |grad_x D|^2 to D's gradients."""
        settings = self.adversarial
        gamma = settings.r1_gamma * settings.r1_every
        precision = full_precision(self.device, settings.r1.second_derivatives)
        with precision, keep_unsharded(self.discriminator):
            penalty = r1_loss(settings.r1, self.discriminator, *samples, gamma, settings.r1_noise)
            self.manual_backward(penalty.loss)
        return penalty

    def try_gradient_penalty(self, micro_batches: list[MicroBatch]) -> None:
        """After the first step of a fit compute one penalty for nothing: a run that lacks the memory fails now."""
        tried, self._tried_gradient_penalty = self._tried_gradient_penalty, True
        if tried or self.adversarial is None or self.adversarial.r1_gamma == 0 or self.uses_discriminator:
            return
        samples = self.adversarial.r1_samples_per_process(self.trainer.world_size)
        with self.optimizing("d"):  # which clears the gradients
            self.penalise(take(micro_batches, list(range(samples))))

    def generator_step(self, micro_batches: list[MicroBatch], generated: list[Tensor]) -> None:
        """One optimizer step of G on L_reg + lambda_GAN L_GAN, through dL_G/dx^."""
        with self.optimizing("g") as optimizer:
            gradients = self.output_gradients(micro_batches, generated)
            weight = self.gan_weight(gradients)
            for micro_batch, latent, gradient in self.accumulate("g", micro_batches, generated, gradients):
                if len(micro_batches) > 1:  # the first pass kept no graph
                    latent = self.generator(micro_batch.pairs.noise, micro_batch.pairs.conditioning)
                self.manual_backward(latent, gradient=gradient.total(weight) / len(micro_batches))
            optimizer.step()
        self.observed |= outputs.generator_curves(gradients)

    def output_gradients(
        self, micro_batches: list[MicroBatch], generated: list[Tensor]
    ) -> list[outputs.OutputGradients]:
        """dL_reg/dx^ and dL_GAN/dx^ of each micro-batch: the graph of one loss is freed before the next."""
        random, gradients = self.rng(), []
        for micro_batch, latent in zip(micro_batches, generated, strict=True):
            latent, gan_gradient, gan_loss = latent.detach().requires_grad_(True), None, None
            pairs = micro_batch.pairs
            regression = self.regression(latent, pairs.latent, random).mean()
            (regression_gradient,) = torch.autograd.grad(regression, latent)
            if self.uses_discriminator:
                noisy = latent + micro_batch.input_noise
                gan_loss = gan.generator_loss(self.discriminator(noisy, pairs.noise, pairs.conditioning))
                (gan_gradient,) = torch.autograd.grad(gan_loss, latent)
                gan_loss = gan_loss.detach()
            gradients.append(outputs.OutputGradients(regression_gradient, gan_gradient, regression.detach(), gan_loss))
        return gradients

    def gan_weight(self, gradients: list[outputs.OutputGradients]) -> Tensor | float:
        """lambda_GAN: `weight`, rising at first, times the gradients' ratio if `balanced`; 0 without discriminator."""
        if not self.uses_discriminator:
            return 0.0
        weight = self.adversarial.weight * self.adversarial.warmed_up(self.images_seen)
        if not self.adversarial.balanced:
            return weight
        norms = mean_over_processes(torch.stack(outputs.squared_norms(gradients)))
        ratio = self.gradient_balance.update(*norms)
        self.observed["g/gradient_ratio"] = ratio
        return weight * ratio

    # ---- checkpoints ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the averages of `balanced`."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["gradient_balance"] = self.gradient_balance.averages

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the averages of `balanced`; checkpoints of version 0.2 have none."""
        super().on_load_checkpoint(checkpoint)
        self.gradient_balance.averages = checkpoint.get("gradient_balance", self.gradient_balance.averages)
