"""Is the game still one? Diversity and a discriminator that has won are watched, and stop a run that went wrong."""

import os
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.training.checkpoints import GOOD
from diffgan.training.image_clock import ImageInterval

OPINIONS = ("d/right_about_real", "d/right_about_fake")


class TrainingHealth(pl.Callback):
    """Log `health/diversity` and `health/discriminator_accuracy`; end the run when either is bad for too long.

    Diversity is the mean distance among the averaged student's latents of one prompt, over that of the teacher's, for
    the same noises. The discriminator is saturated when it tells real and generated latents apart nearly always: the
    student then learns nothing more from it. The newest checkpoint at the last look that found nothing is kept as
    `good.ckpt`. (A gradient that is not finite ends the run by itself.)

    Args:
        prompts: with which diversity is measured; short ones that leave much open tell most.
        noises: per prompt.
        every_images: images between two looks.
        patience_images: how long it may be bad.
        least_diversity: below this share of the teacher's diversity the student is collapsing.
        saturated_at: share of right signs above which the discriminator has won.
        steps, guidance: of the teacher, as its pairs were made.
        seed: of the first noise.
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
    ):
        if not prompts or noises < 2 or every_images < 1:
            raise UserError("TrainingHealth: needs a prompt, two noises for each, and every_images of at least 1")
        self.prompts, self.noises, self.seed = prompts, noises, seed
        self.interval, self.patience_images = ImageInterval(every_images), patience_images
        self.least_diversity, self.saturated_at = least_diversity, saturated_at
        self.steps, self.guidance = steps, guidance
        self.bad_since: dict[str, int] = {}  # images seen when it began
        self._right: list[Tensor] = []
        self._teacher_diversity: Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interval.start(pl_module.images_seen)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if all(name in pl_module.observed for name in OPINIONS):
            self._right.append(torch.stack([pl_module.observed[name] for name in OPINIONS]).mean())
        if self.interval.passed(pl_module.images_seen):
            self.look(trainer, pl_module)

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, log, and raise UserError if something has been bad for too long (collective)."""
        diversity = self.diversity(pl_module)
        pl_module.record({"health/diversity": diversity}, pl_module.images_seen)
        self._judge("the student's diversity has collapsed", float(diversity) < self.least_diversity, pl_module)
        if self._right:
            window = torch.stack([right.to(pl_module.device) for right in self._right])
            right = trainer.strategy.reduce(window.mean(), reduce_op="mean")
            pl_module.record({"health/discriminator_accuracy": right}, pl_module.images_seen)
            self._judge("the discriminator is saturated", float(right) > self.saturated_at, pl_module)
            self._right.clear()
        if not self.bad_since:
            self._keep(trainer, pl_module)

    def _keep(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The newest checkpoint becomes `good.ckpt` too: it stays while later ones are of a run gone wrong."""
        last = pl_module.last_checkpoint
        if last is None or not last.is_file():
            return
        if trainer.is_global_zero:
            good = last.with_name(GOOD)
            good.unlink(missing_ok=True)
            os.link(last, good)

    @torch.no_grad()
    def diversity(self, pl_module: pl.LightningModule) -> Tensor:
        """Of the averaged student, over that of the teacher: ()."""
        teacher, count = pl_module.teacher, len(self.prompts) * self.noises
        noise = draw_noise(range(self.seed, self.seed + count), teacher.latent_shape).to(pl_module.device)
        conditioning = teacher.encode([prompt for prompt in self.prompts for _ in range(self.noises)])
        if self._teacher_diversity is None:
            taught = teacher.solve(noise, conditioning, self.steps, self.guidance)
            self._teacher_diversity = spread(taught, self.noises)
        return spread(pl_module.generator_ema(noise, conditioning), self.noises) / self._teacher_diversity

    def _judge(self, what: str, bad: bool, pl_module: pl.LightningModule) -> None:
        if not bad:
            self.bad_since.pop(what, None)
            return
        began = self.bad_since.setdefault(what, pl_module.images_seen)
        if pl_module.images_seen - began >= self.patience_images:
            pl_module.stop(f"{what}: so for {pl_module.images_seen - began} images")

    def state_dict(self) -> dict[str, Any]:
        return {"bad_since": dict(self.bad_since), "right": [float(right) for right in self._right]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bad_since = dict(state["bad_since"])
        self._right = [torch.tensor(right) for right in state.get("right", [])]


def spread(latents: Tensor, group: int) -> Tensor:
    """Root mean squared distance within groups of `group` latents, averaged over the groups: ().

    latents: (groups * group, C, H, W).
    """
    grouped = latents.float().unflatten(0, (-1, group)).flatten(2)  # (groups, group, d)
    return grouped.var(1).mul(2).mean(1).sqrt().mean()
