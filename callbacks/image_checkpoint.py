"""Checkpoints by the clock of images, whole or not at all."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from callbacks.folders import run_folder
from diffgan.errors import UserError


class ImageCheckpoint(Checkpoint):
    """Write `checkpoints/last.ckpt` in the run's folder every so many images and at the end of the training.

    The one before stays as `previous.ckpt`.

    The file appears under its name only when it is whole. `diffgan fit` continues from it by itself.

    Args:
        every_images: images between two checkpoints.
    """

    def __init__(self, every_images: int):
        if every_images < 1:
            raise UserError(f"every_images: {every_images} must be at least 1")
        self.every_images = every_images
        self._saved_at = -1

    @staticmethod
    def newest(trainer: pl.Trainer) -> Path | None:
        """The newest checkpoint of the run; `previous.ckpt` if the run was killed between the two renames."""
        folder = run_folder(trainer) / "checkpoints"
        return next((file for name in ("last.ckpt", "previous.ckpt") if (file := folder / name).is_file()), None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = pl_module.images_seen

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        before = pl_module.images_seen - len(batch.prompt) * trainer.world_size
        if pl_module.images_seen // self.every_images > before // self.every_images:
            self.save(trainer, pl_module.images_seen)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.images_seen != self._saved_at:
            self.save(trainer, pl_module.images_seen)

    def save(self, trainer: pl.Trainer, images: int) -> None:
        """Write the checkpoint beside its place, then move it there (collective: every process calls it)."""
        last = run_folder(trainer) / "checkpoints" / "last.ckpt"
        partial = last.with_name("last.ckpt.partial")
        try:
            trainer.save_checkpoint(partial)
        except OSError as error:
            raise UserError(f"{partial}: the checkpoint cannot be written ({error})") from error
        if trainer.is_global_zero:
            if last.exists():
                last.replace(last.with_name("previous.ckpt"))
            partial.replace(last)
        trainer.strategy.barrier()
        self._saved_at = images
