"""Checkpoints by the clock of images, whole or not at all; one more when the machine is taken away."""

import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from callbacks.run_folder import run_folder
from diffgan.errors import UserError
from diffgan.training.image_clock import passed

AGREE_EVERY = 8  # batches: many processes ask one another whether one was told to stop


class ImageCheckpoint(Checkpoint):
    """Write `checkpoints/last.ckpt` in the run's folder every so many images and at the end of the training.

    The one before stays as `previous.ckpt`.

    The file appears under its name only when it is whole. `diffgan fit` continues from it by itself. SIGTERM (a machine
    that is preempted) and Ctrl-C write one at the end of the batch and end the process with exit code 143 or 130; a
    second Ctrl-C ends it at once.

    Args:
        every_images: images between two checkpoints.
    """

    def __init__(self, every_images: int):
        if every_images < 1:
            raise UserError(f"every_images: {every_images} must be at least 1")
        self.every_images = every_images
        self._saved_at, self._told, self._handlers = -1, 0, {}

    @staticmethod
    def newest(trainer: pl.Trainer) -> Path | None:
        """The newest checkpoint of the run; `previous.ckpt` if the run was killed between the two renames."""
        folder = run_folder(trainer) / "checkpoints"
        return next((file for name in ("last.ckpt", "previous.ckpt") if (file := folder / name).is_file()), None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at, self._told = pl_module.images_seen, 0
        pl_module.last_checkpoint = self.newest(trainer)
        # Lightning's own handler waits for the other processes inside the signal and may wait for ever.
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

    def _on_signal(self, number: int, _) -> None:
        if self._told and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._told = number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if passed(self.every_images, pl_module.images_seen, len(batch.prompt) * trainer.world_size):
            self.save(trainer, pl_module)
        if trainer.world_size == 1 or batch_idx % AGREE_EVERY == 0:
            self._stop_if_terminated(trainer, pl_module)

    def _stop_if_terminated(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save and leave if any process has been told to (collective)."""
        if not trainer.strategy.reduce_boolean_decision(bool(self._told), all=False):
            return
        if pl_module.images_seen != self._saved_at:
            self.save(trainer, pl_module)
        if trainer.is_global_zero:
            seen, saved = pl_module.images_seen, pl_module.last_checkpoint
            print(f"diffgan: terminated after {seen} images; the same command goes on from {saved}", file=sys.stderr)
        raise SystemExit(128 + (self._told or signal.SIGTERM))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.images_seen != self._saved_at:
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint beside its place, then move it there (collective: every process calls it)."""
        last = run_folder(trainer) / "checkpoints" / "last.ckpt"
        partial = last.with_name("last.ckpt.partial")
        try:
            trainer.save_checkpoint(partial)
        except OSError as error:
            raise UserError(f"{partial}: the checkpoint cannot be written ({error})") from error
        for logger in trainer.loggers:
            logger.save()  # the curves are on disk as far as the weights are
        if trainer.is_global_zero:
            with partial.open("rb") as whole:
                os.fsync(whole.fileno())
            if last.exists():
                last.replace(last.with_name("previous.ckpt"))
            partial.replace(last)
        trainer.strategy.barrier()
        self._saved_at, pl_module.last_checkpoint = pl_module.images_seen, last
