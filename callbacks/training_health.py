"""Health of a distillation: diversity and discriminator accuracy, with a warning when a run goes wrong."""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from diffgan.methods.base import Distillation
from diffgan.noise import draw_noise, require_seeds
from diffgan.numbers import require, require_guidance
from diffgan.prompts.limits import require_prompts
from diffgan.training.checkpoints import GOOD, keep_as
from diffgan.training.image_clock import ImageInterval
from diffgan.training.strategies import mean_over_processes

ACCURACIES = ("d/accuracy_real", "d/accuracy_fake")


class TrainingHealth(pl.Callback):
    """Log `health/diversity` and `health/discriminator_accuracy`; warn when either is bad for too long.

    Diversity is the mean distance among the averaged student's latents of one prompt, divided by that among the
    teacher's latents of the same noises. The discriminator is saturated when it classifies nearly all real and
    generated latents correctly: the student may then learn little from it. At every check without a finding the
    newest checkpoint is kept as `good.ckpt`. (A gradient that is not finite ends the run in any case.)

    Args:
        prompts: with which diversity is measured; short prompts, which leave much open, work best.
        noises: number of noises for each prompt, at least 2.
        every_images: images between two checks, at least 1.
        patience_images: images for which a finding may last before a warning.
        least_diversity: the student is collapsing below this share of the teacher's diversity.
        saturated_at: the discriminator is saturated above this accuracy.
        steps, guidance: of the teacher, as its pairs were made.
        seed: of the first noise.
        stop: end the run instead of warning.
    """

    def __init__(
        self,
        prompts: list[str],
        noises: int = 8,
        every_images: int = 4000,
        patience_images: int = 20_000,
        least_diversity: float = 0.5,
        saturated_at: float = 0.995,
        steps: int = 20,
        guidance: float = 3.0,
        seed: int = 3_600_000_000,
        stop: bool = False,
    ):
        require_prompts("TrainingHealth: prompts", prompts)
        require("TrainingHealth: noises", noises, least=2)
        require("TrainingHealth: every_images", every_images, least=1)
        require("TrainingHealth: patience_images", patience_images, least=0)
        for name, share in (("least_diversity", least_diversity), ("saturated_at", saturated_at)):
            require(f"TrainingHealth: {name}", share)
        require("TrainingHealth: steps", steps, least=1)
        require_guidance("TrainingHealth: guidance", guidance)
        require_seeds("TrainingHealth: seed", seed, len(prompts) * noises)
        self.prompts, self.noises, self.seed = prompts, noises, seed
        self.interval, self.patience_images = ImageInterval(every_images), patience_images
        self.least_diversity, self.saturated_at = least_diversity, saturated_at
        self.steps, self.guidance, self.stop = steps, guidance, stop
        self._warned: set[str] = set()  # findings of which the user knows
        self.bad_since: dict[str, int] = {}  # by finding: images seen at its first check
        self._accuracies: list[Tensor] = []  # of the batches since the last check
        self._teacher_diversity: Tensor | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Distillation) -> None:
        """Check the steps, which depend on the teacher."""
        pl_module.teacher.schedule.check_steps(self.steps)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Distillation) -> None:
        self.interval.start(pl_module.images_seen)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Distillation, outputs, batch, batch_idx: int) -> None:
        if all(name in pl_module.observed for name in ACCURACIES):
            self._accuracies.append(torch.stack([pl_module.observed[name] for name in ACCURACIES]).mean())
        if self.interval.passed(pl_module.images_seen):
            self.check(trainer, pl_module)

    def check(self, trainer: pl.Trainer, pl_module: Distillation) -> None:
        """Measure and log (collective).

        Raises:
            UserError, SystemExit: as `Distillation.stop`, if something has been bad for too long and `stop` is set.
        """
        self._check_diversity(pl_module)
        if self._accuracies:
            self._check_accuracy(trainer, pl_module)
        if not self.bad_since:
            self._keep_good_checkpoint(trainer, pl_module)

    def _check_diversity(self, pl_module: Distillation) -> None:
        diversity = mean_over_processes(self.diversity(pl_module))  # each has measured the same, but for rounding
        pl_module.log_curves({"health/diversity": diversity}, pl_module.images_seen)
        collapsed = float(diversity) < self.least_diversity
        self._update_finding("the student's diversity has collapsed", collapsed, pl_module)

    def _check_accuracy(self, trainer: pl.Trainer, pl_module: Distillation) -> None:
        own = torch.stack([accuracy.to(pl_module.device) for accuracy in self._accuracies]).mean()
        accuracy = trainer.strategy.reduce(own, reduce_op="mean")
        pl_module.log_curves({"health/discriminator_accuracy": accuracy}, pl_module.images_seen)
        self._update_finding("the discriminator is saturated", float(accuracy) > self.saturated_at, pl_module)
        self._accuracies.clear()

    def _update_finding(self, finding: str, bad: bool, pl_module: Distillation) -> None:
        if not bad:
            self.bad_since.pop(finding, None)
            self._warned.discard(finding)
            return
        lasted = pl_module.images_seen - self.bad_since.setdefault(finding, pl_module.images_seen)
        if lasted >= self.patience_images:
            self._report(f"{finding}: for {lasted} images now", finding, pl_module)

    def _report(self, message: str, finding: str, pl_module: Distillation) -> None:
        """Stop the run, or warn once until the finding is gone."""
        if self.stop:
            pl_module.stop(message)
        if finding not in self._warned and pl_module.trainer.is_global_zero:
            print(f"diffgan: warning: after {pl_module.images_seen} images: {message}", file=sys.stderr)
        self._warned.add(finding)

    def _keep_good_checkpoint(self, trainer: pl.Trainer, pl_module: Distillation) -> None:
        """Link `good.ckpt` to the newest checkpoint: it stays while later ones are of a run that goes wrong."""
        last = pl_module.last_checkpoint
        if last is None or not last.is_file():
            return
        if trainer.is_global_zero:
            keep_as(last, last.with_name(GOOD))

    @torch.no_grad()
    def diversity(self, pl_module: Distillation) -> Tensor:
        """Diversity of the averaged student, divided by that of the teacher: ()."""
        count, first_time = len(self.prompts) * self.noises, self._teacher_diversity is None
        noise = draw_noise(range(self.seed, self.seed + count), pl_module.teacher.latent_shape).to(pl_module.device)
        with pl_module.teacher_on_device(denoiser=first_time) as teacher, pl_module.average_on_device() as generator:
            conditioning = teacher.encode([prompt for prompt in self.prompts for _ in range(self.noises)])
            if first_time:
                latents = teacher.solve(noise, conditioning, self.steps, self.guidance)
                self._teacher_diversity = spread(latents, self.noises)
            return spread(generator(noise, conditioning), self.noises) / self._teacher_diversity

    def state_dict(self) -> dict[str, Any]:
        return {"bad_since": dict(self.bad_since), "right": [float(accuracy) for accuracy in self._accuracies]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bad_since = dict(state_dict["bad_since"])
        self._accuracies = [torch.tensor(accuracy) for accuracy in state_dict.get("right", [])]


def spread(latents: Tensor, group: int) -> Tensor:
    """Root mean squared distance within groups of `group` latents, averaged over the groups: ().

    latents: (groups * group, C, H, W).
    """
    grouped = latents.float().unflatten(0, (-1, group)).flatten(2)  # (groups, group, d)
    return grouped.var(1).mul(2).mean(1).sqrt().mean()
