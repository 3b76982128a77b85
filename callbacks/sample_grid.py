"""Pictures of fixed noises and prompts: teacher above, student below, and what the student began as."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from callbacks.run_folder import run_folder
from diffgan.images import save_image_grid, to_uint8
from diffgan.noise import draw_noise


class SampleGrid(pl.Callback):
    """Draw the same noises and prompts with the teacher (once) and the student (at every validation and test).

    The last row is the student before its training: the teacher's network called once.

    Writes `samples/images-<images seen>.png` in the run's folder and the TensorBoard image `samples`.

    Args:
        prompts: one column each.
        seed: the noise of column i is drawn from seed + i.
        steps, guidance: of the teacher.
    """

    def __init__(self, prompts: list[str], seed: int = 3_500_000_000, steps: int = 50, guidance: float = 3.0):
        self.prompts, self.seed = prompts, seed
        self.steps, self.guidance = steps, guidance
        self._teacher_images: tuple[Tensor, Tensor] | None = None  # after all steps, after one
        self.folder = Path()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.folder = run_folder(trainer) / "samples"

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.draw(trainer, pl_module)

    on_test_end = on_validation_end

    @torch.no_grad()
    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Path:
        """Write the sheet of now (collective: weights may be shards); returns its path."""
        teacher = pl_module.teacher
        seeds = range(self.seed, self.seed + len(self.prompts))
        noise = draw_noise(seeds, teacher.latent_shape).to(pl_module.device)
        conditioning = teacher.encode(self.prompts)
        if self._teacher_images is None:
            latents = (teacher.solve(noise, conditioning, *how) for how in ((self.steps, self.guidance), (1, 1.0)))
            self._teacher_images = tuple(teacher.decode(latent) for latent in latents)
        taught, untrained = self._teacher_images
        student = teacher.decode(pl_module.generator_ema(noise, conditioning))
        path = self.folder / f"images-{pl_module.images_seen:08d}.png"
        if not trainer.is_global_zero:
            return path
        rows = {f"teacher, {self.steps} steps": taught, "student, 1 step": student, "teacher, 1 step": untrained}
        sheet = save_image_grid(path, {name: to_uint8(images) for name, images in rows.items()}, self.prompts)
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_image("samples", sheet, pl_module.images_seen, dataformats="HWC")
        return path
