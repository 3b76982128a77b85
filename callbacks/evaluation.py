"""Evaluate the one-step generator at validation and test: when, and what becomes of the metrics."""

from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.evaluator import Evaluator, Generate
from diffgan.evaluation.work_split import SINGLE_PROCESS, WorkSplit
from diffgan.numbers import require
from diffgan.training.image_clock import ImageInterval


class Evaluation(pl.Callback):
    """Evaluate `generator_ema` at validation and test; log the metrics as `evaluation/<name>`.

    Each of several processes generates and measures its own images; together they are exactly the protocol's.
    `metrics` holds those of the last evaluation, with protocol and digest; it is empty after a validation without one.
    `batch_size` is the number of images that a process makes at once.

    Args:
        every_images: in a fit, evaluate at the first validation after each multiple of so many images; None: never in
            a fit.
        fit_only: evaluate in no `diffgan validate` and `diffgan test`, where another callback evaluates.

    Raises:
        UserError: `every_images` is out of range, or there is no time at which it evaluates.
    """

    batch_size: int

    def __init__(self, every_images: int | None, fit_only: bool = False):
        if every_images is not None:
            require(f"{type(self).__name__}: every_images", every_images, least=1)
        if every_images is None and fit_only:
            raise UserError(f"{type(self).__name__}: fit_only requires every_images, or it never evaluates")
        self.every_images, self.fit_only = every_images, fit_only
        self._interval = None if every_images is None else ImageInterval(every_images)
        self.metrics: dict[str, Any] = {}
        self._evaluator: Evaluator | None = None

    @abstractmethod
    def build_evaluator(self) -> Evaluator:
        """The evaluator; raises UserError if a file or weights are missing."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Build the evaluator, so that a missing file is found now; a stage without an evaluation needs none."""
        evaluates = self.every_images is not None if stage == "fit" else not self.fit_only
        if self._evaluator is None and evaluates:
            self._evaluator = self.build_evaluator()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._interval is not None:  # one image back: a run that ended during an evaluation makes it again
            self._interval.start(max(0, pl_module.images_seen - 1))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.metrics = {}
        if not trainer.sanity_checking and self._is_due(trainer, pl_module):
            self.run(pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.fit_only:
            self.run(pl_module)

    def _is_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether to evaluate at this validation."""
        if trainer.state.fn != "fit":
            return not self.fit_only
        return self._interval is not None and self._interval.passed(pl_module.images_seen)

    def run(self, pl_module: pl.LightningModule) -> None:
        """Evaluate now, log the numbers and keep them in `metrics` (collective)."""
        self.metrics = self.evaluate(pl_module)
        numbers = {name: value for name, value in self.metrics.items() if isinstance(value, float)}
        pl_module.log_dict({f"evaluation/{name}": value for name, value in numbers.items()})

    def evaluate(self, pl_module: pl.LightningModule) -> dict[str, Any]:
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

    def generate(noise: Tensor, prompts: list[str], seeds: list[int]) -> Tensor:
        latent = pl_module.generator_ema(noise.to(pl_module.device), pl_module.teacher.encode(prompts))
        return pl_module.teacher.decode(latent)

    return generate
