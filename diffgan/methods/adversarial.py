"""Settings of adversarial training: the discriminator, its optimizer, and the weights of the adversarial losses."""

from collections.abc import Callable
from typing import Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.losses import gradient_penalty, mix_and_match
from diffgan.methods.optimization import OptimizerSettings
from diffgan.nets.read_outs import Discriminator
from diffgan.numbers import require
from diffgan.training.lr_schedules import warmup_cooldown

DEFAULT_WARMUP = 1000  # images


class AdversarialTraining:
    """The adversarial part of Diffusion2GAN.

    Args:
        discriminator: called with the teacher's network; returns D.
        optimizer: called with D's parameters.
        weight: lambda_GAN, at least 0.
        balanced: multiply `weight` by |grad L_reg| / |grad L_GAN| at the generated latent (`GradientBalance`): D then
            has the same share in the generator's gradient whatever the scales of the losses.
        starts_at_images: images trained with the regression loss alone before D is used.
        generator_rate: factor of G's learning rate from `starts_at_images` on, above 0.
        warmup_images: images of the linear rise of D's learning rate and of lambda_GAN, from `starts_at_images` on.
        clip_norm: largest norm of D's gradient, above 0.
        r1: how the gradient penalty is computed: "exact" by a double backward pass, or "finite_difference" by two more
            passes, which takes a fraction of the memory.
        r1_gamma: gamma of the gradient penalty; 0 switches the penalty off.
        r1_every: discriminator steps from one penalty to the next (lazy regularisation), at least 1.
        r1_samples: samples of the global batch that are penalised; at least one per process.
        r1_noise: penalise the gradient with respect to z too.
        mismatch_share: share of the fake samples that mix-and-match replaces, in [0, 1).
        input_noise: standard deviation of Gaussian noise that is added to D's real and generated latents, the same to
            both of a row, at least 0. It hides rounding noise in the generated latents, which D could learn to detect.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        discriminator: Callable[[nn.Module], Discriminator],
        optimizer: OptimizerCallable,
        weight: float = 2.0,
        balanced: bool = True,
        starts_at_images: int = 0,
        generator_rate: float = 1.0,
        warmup_images: int = DEFAULT_WARMUP,
        clip_norm: float = 10.0,
        r1: Literal["exact", "finite_difference"] = "exact",
        r1_gamma: float = 1.0,
        r1_every: int = 16,
        r1_samples: int = 1,
        r1_noise: bool = False,
        mismatch_share: float = 0.25,
        input_noise: float = 0.0,
    ):
        self.discriminator, self.optimizer = discriminator, optimizer
        self.weight, self.balanced, self.clip_norm = weight, balanced, clip_norm
        self.starts_at_images, self.warmup_images = starts_at_images, warmup_images
        self.generator_rate = generator_rate
        self.r1_gamma, self.r1_every, self.r1_samples, self.r1_noise = r1_gamma, r1_every, r1_samples, r1_noise
        self.r1 = gradient_penalty.METHODS[r1]
        self.mismatch_share, self.input_noise = mismatch_share, input_noise
        self._check_ranges()

    def _check_ranges(self) -> None:
        lowest = {
            "starts_at_images": 0,
            "warmup_images": 0,
            "r1_every": 1,
            "r1_samples": 1,
            "weight": 0,
            "r1_gamma": 0,
            "input_noise": 0,
        }
        for name, limit in lowest.items():
            require(f"adversarial: {name}", getattr(self, name), least=limit)
        for name in ("clip_norm", "generator_rate"):
            require(f"adversarial: {name}", getattr(self, name), above=0)
        require("adversarial: mismatch_share", self.mismatch_share, least=0, below=1)

    def optimizer_settings(self, cooldown_images: int, images: int) -> OptimizerSettings:
        """How D is optimized in a training of `images` images whose last `cooldown_images` lower the learning rate.

        Raises:
            UserError: the training ends before D is used.
        """
        start = self.starts_at_images
        if start >= images:
            raise UserError(
                f"adversarial: starts_at_images is {start}, but the training ends after {images} images; "
                "lower starts_at_images or raise images"
            )
        factor = warmup_cooldown(self.warmup_images, cooldown_images, images - start)
        return OptimizerSettings(self.optimizer, lambda images_seen: factor(images_seen - start), self.clip_norm, start)

    def build_discriminator(self, denoiser: nn.Module) -> Discriminator:
        """D, built from the teacher's network.

        Raises:
            UserError: `r1_noise` is set, but D does not see the noise.
        """
        discriminator = self.discriminator(denoiser)
        if self.r1_noise and not discriminator.sees_noise:
            raise UserError("adversarial: r1_noise penalises the gradient in z, but noise_conditioning is false")
        return discriminator

    def warmed_up(self, images_seen: int) -> float:
        """Factor of lambda_GAN: it rises linearly over `warmup_images`."""
        return min(1.0, (images_seen - self.starts_at_images + 1) / max(1, self.warmup_images))

    def fake_kinds(self, first: int, rows: int, discriminator: Discriminator) -> Tensor:
        """Kinds of the fake samples, (rows,) on the CPU: see `mix_and_match.fake_kinds`.

        A D that does not see the noise gets no sample that only the noise shows to be fake.
        """
        mismatches = [mix_and_match.TEXT, mix_and_match.LATENT]
        if discriminator.sees_noise:
            mismatches.insert(1, mix_and_match.NOISE)
        return mix_and_match.fake_kinds(first, rows, self.mismatch_share, mismatches)

    def r1_samples_per_process(self, processes: int) -> int:
        """How many samples each process penalises, at least 1."""
        return max(1, self.r1_samples // processes)

    def penalised_rows(self, images_seen: int, pairs_per_process: int, processes: int) -> list[int]:
        """Rows of a process's pairs that R1 penalises in this discriminator step; empty if it has no penalty.

        Args:
            images_seen: before the step.
            pairs_per_process: pairs of each process in a step.
            processes: number of processes.
        """
        step = (images_seen - self.starts_at_images) // (pairs_per_process * processes)
        if self.r1_gamma == 0 or step % self.r1_every != 0:
            return []
        samples = self.r1_samples_per_process(processes)
        return list(gradient_penalty.rotating_rows(pairs_per_process, samples, penalty=step // self.r1_every))

    def check_batch(self, pairs_per_process: int, processes: int) -> None:
        """Raises UserError if R1 or mix-and-match is impossible with that many pairs per process."""
        uneven = self.r1_samples > processes and self.r1_samples % processes
        if uneven or pairs_per_process % self.r1_samples_per_process(processes):
            raise UserError(
                f"adversarial: r1_samples {self.r1_samples} cannot be spread evenly over {processes} processes with "
                f"{pairs_per_process} pairs each"
            )
        if self.mismatch_share and pairs_per_process % 2:
            raise UserError(
                f"adversarial: mismatch_share {self.mismatch_share} needs an even number of pairs per process; there "
                f"are {pairs_per_process} (choose another batch_size, or mismatch_share: 0.0)"
            )
