"""Checkpoints by the clock of images, whole or not at all."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from diffgan.errors import UserError


class ImageCheckpoint(Checkpoint):
    """Write `checkpoints/last.ckpt` in the run's folder every so many images and at the end of the training.

    The one before stays as `previous.ckpt`.

    The file appears under its name only when it is whole. `diffgan fit` continues from it by itself.

    Args:
        every_images: images between two checkpoints.
    """

    def __init__(self, every_images: int):
        self.every_images = every_images
        self._saved_at = -1

    @staticmethod
    def last(trainer: pl.Trainer) -> Path:
        """The newest checkpoint of the run, whether it is there or not."""
        return Path(trainer.log_dir) / "checkpoints" / "last.ckpt"

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        before = pl_module.images_seen - len(batch.prompt) * trainer.world_size
        if pl_module.images_seen // self.every_images > before // self.every_images:
            self.save(trainer, pl_module.images_seen)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.images_seen != self._saved_at and trainer.global_step > 0:
            self.save(trainer, pl_module.images_seen)

    def save(self, trainer: pl.Trainer, images: int) -> None:
        """Write the checkpoint beside its place, then move it there (collective: every process calls it)."""
        last = self.last(trainer)
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
