"""Evaluate the one-step generator at validation and test: when, and what becomes of the metrics."""

from abc import abstractmethod

import lightning.pytorch as pl
from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.evaluator import Evaluator, Generate
from diffgan.evaluation.work_split import SINGLE_PROCESS, WorkSplit


class Evaluation(pl.Callback):
    """Evaluate `generator_ema` at validation and test; log the metrics as `evaluation/<name>`.

    Each of several processes generates and measures its own images; together they are exactly the protocol's.
    `metrics` holds those of the last evaluation, with protocol and digest; it is empty after a validation without one.

    Args:
        every_images: in a fit, evaluate at the first validation after so many more images; None: never in a fit.
    """

    def __init__(self, every_images: int | None):
        if every_images is not None and every_images < 1:
            raise UserError(f"{type(self).__name__}: every_images {every_images} must be at least 1")
        self.every_images = every_images
        self.metrics: dict[str, float | str] = {}
        self._evaluator: Evaluator | None = None
        self._due = every_images

    @abstractmethod
    def build_evaluator(self) -> Evaluator:
        """The evaluator; raises UserError if a file or weights are missing."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Build the evaluator, so that a missing file is found now; a fit that never evaluates needs none."""
        if self._evaluator is None and (stage != "fit" or self.every_images is not None):
            self._evaluator = self.build_evaluator()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or (trainer.state.fn == "fit" and not self._is_due(pl_module.images_seen)):
            self.metrics = {}
            return
        self.run(pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.run(pl_module)

    def _is_due(self, images_seen: int) -> bool:
        if self._due is None or images_seen < self._due:
            return False
        self._due = images_seen + self.every_images
        return True

    def run(self, pl_module: pl.LightningModule) -> None:
        """Evaluate now, log the numbers and keep them in `metrics` (collective)."""
        self.metrics = self.evaluate(pl_module)
        numbers = {name: value for name, value in self.metrics.items() if isinstance(value, float)}
        pl_module.log_dict({f"evaluation/{name}": value for name, value in numbers.items()})

    def evaluate(self, pl_module: pl.LightningModule) -> dict[str, float | str]:
        """The metrics of the generator (collective)."""
        shape, device = pl_module.teacher.latent_shape, self.device(pl_module)
        with pl_module.teacher_on_device(denoiser=False), pl_module.average_on_device():
            return self._evaluator.evaluate(one_step(pl_module), shape, device, work_split(pl_module))

    def device(self, pl_module: pl.LightningModule) -> str:
        """Where the networks of the metrics compute."""
        return str(pl_module.device)


def work_split(pl_module: pl.LightningModule) -> WorkSplit:
    """This process's place among the trainer's."""
    trainer = pl_module.trainer
    if trainer.world_size == 1:  # there `all_gather` adds no dimension
        return SINGLE_PROCESS
    return WorkSplit(trainer.global_rank, trainer.world_size, pl_module.all_gather)


def one_step(pl_module: pl.LightningModule) -> Generate:
    """The averaged generator, called once, and the decoder; both must be on the device."""

    def generate(noise: Tensor, prompts: list[str]) -> Tensor:
        latent = pl_module.generator_ema(noise.to(pl_module.device), pl_module.teacher.encode(prompts))
        return pl_module.teacher.decode(latent)

    return generate
