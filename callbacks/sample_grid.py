"""Grids of images of fixed noises and prompts: the teacher, the student, and the untrained student."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from callbacks.run_folder import run_folder
from diffgan.conditioning import Conditioning
from diffgan.images import image_grid, png_bytes, to_uint8
from diffgan.methods.base import Distillation
from diffgan.nets.generator import OneStepGenerator
from diffgan.noise import draw_noise, require_seeds
from diffgan.numbers import require, require_guidance
from diffgan.prompts.limits import require_prompts
from diffgan.storage.atomic import write_atomic


class SampleGrid(pl.Callback):
    """Draw the same noises and prompts with the teacher (once) and the student (at every validation and test).

    The last row is the student before its training: the teacher's network called once, at the student's timestep.

    Writes `samples/images-<images seen>.png` in the run's folder and the TensorBoard image `samples`.

    Args:
        prompts: one column each.
        seed: the noise of column i is drawn from seed + i.
        steps, guidance: of the teacher.

    Raises:
        UserError: a value is out of range; before the first batch, the teacher does not have so many steps.
    """

    def __init__(self, prompts: list[str], seed: int = 3_500_000_000, steps: int = 50, guidance: float = 3.0):
        require_prompts("SampleGrid: prompts", prompts)
        require_seeds("SampleGrid: seed", seed, len(prompts))
        require("SampleGrid: steps", steps, least=1)
        require_guidance("SampleGrid: guidance", guidance)
        self.prompts, self.seed = prompts, seed
        self.steps, self.guidance = steps, guidance
        self._teacher_images: tuple[Tensor, Tensor] | None = None  # solved, and of one call
        self.folder = Path()

    def setup(self, trainer: pl.Trainer, pl_module: Distillation, stage: str) -> None:
        self.folder = run_folder(trainer) / "samples"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Distillation) -> None:
        """Check the steps, which depend on the teacher."""
        pl_module.teacher.schedule.check_steps(self.steps)

    on_validation_start = on_test_start = on_fit_start

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Distillation) -> None:
        if not trainer.sanity_checking:
            self.draw(trainer, pl_module)

    on_test_end = on_validation_end

    @torch.no_grad()
    def draw(self, trainer: pl.Trainer, pl_module: Distillation) -> Path:
        """Write the grid of the current student; returns its path (collective: weights may be shards)."""
        seeds = range(self.seed, self.seed + len(self.prompts))
        noise = draw_noise(seeds, pl_module.teacher.latent_shape).to(pl_module.device)
        first_time = self._teacher_images is None
        with pl_module.teacher_on_device(denoiser=first_time) as teacher, pl_module.average_on_device() as generator:
            conditioning = teacher.encode(self.prompts)
            if first_time:
                self._teacher_images = self._draw_teacher(pl_module, noise, conditioning)
            student = teacher.decode(generator(noise, conditioning))
        path = self.folder / f"images-{pl_module.images_seen:08d}.png"
        if trainer.is_global_zero:
            self._write(path, student, trainer, pl_module.images_seen)
        return path

    def _draw_teacher(
        self, pl_module: Distillation, noise: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Images after all steps with guidance, and of the untrained student, without."""
        teacher, timestep = pl_module.teacher, pl_module.generator.timestep
        untrained = OneStepGenerator(teacher.denoiser, teacher.scheduler, timestep)
        solved = teacher.decode(teacher.solve(noise, conditioning, self.steps, self.guidance))
        return solved, teacher.decode(untrained(noise, conditioning))

    def _write(self, path: Path, student: Tensor, trainer: pl.Trainer, images_seen: int) -> None:
        solved, untrained = self._teacher_images
        rows = {f"teacher, {self.steps} steps": solved, "student, 1 step": student, "teacher, 1 step": untrained}
        grid = image_grid({name: to_uint8(images) for name, images in rows.items()}, self.prompts)
        write_atomic(path, png_bytes(grid))
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_image("samples", np.asarray(grid), images_seen, dataformats="HWC")
