"""Atomic checkpoints at intervals of images, and on SIGTERM and Ctrl-C."""

import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from callbacks.run_folder import run_folder
from diffgan.errors import UserError
from diffgan.training.image_clock import ImageInterval

SIGNAL_CHECK_BATCHES = 8  # interval at which several processes exchange whether one received a signal


class ImageCheckpoint(Checkpoint):
    """Write `checkpoints/last.ckpt` in the run's folder every `every_images` images and at the end of the training.

    The checkpoint before is kept as `previous.ckpt`. A file gets its name only when it is complete, and `diffgan fit`
    resumes from it automatically. After SIGTERM (a preempted machine) or Ctrl-C, a checkpoint is written at the end of
    the batch and the process exits with code 143 or 130. A second Ctrl-C ends it immediately.

    Args:
        every_images: images between two checkpoints, at least 1.

    Raises:
        UserError: `every_images` is out of range.
    """

    def __init__(self, every_images: int):
        if every_images < 1:
            raise UserError(f"every_images: {every_images} must be at least 1")
        self.interval = ImageInterval(every_images)
        self._saved_at = -1  # images seen by the newest checkpoint of this process
        self._signal = 0  # number of the signal that was received
        self._handlers = {}  # signal handlers from before the training

    @staticmethod
    def newest(trainer: pl.Trainer) -> Path | None:
        """The newest checkpoint of the run: `previous.ckpt` if the run was killed between the two renames of `save`."""
        folder = run_folder(trainer) / "checkpoints"
        candidates = (folder / "last.ckpt", folder / "previous.ckpt")
        return next((file for file in candidates if file.is_file()), None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interval.start(pl_module.images_seen)
        self._saved_at, self._signal = pl_module.images_seen, 0
        pl_module.last_checkpoint = self.newest(trainer)
        # Lightning's own handler waits for the other processes inside the signal handler, possibly for ever.
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

    def _on_signal(self, number: int, _) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.interval.passed(pl_module.images_seen):
            self.save(trainer, pl_module)
        if trainer.world_size == 1 or batch_idx % SIGNAL_CHECK_BATCHES == 0:
            self._exit_on_signal(trainer, pl_module)

    def _exit_on_signal(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save and exit if any process has received a signal (collective: every process must call it)."""
        if not trainer.strategy.reduce_boolean_decision(bool(self._signal), all=False):
            return
        if pl_module.images_seen != self._saved_at:
            self.save(trainer, pl_module)
        if trainer.is_global_zero:
            checkpoint = pl_module.last_checkpoint
            message = f"terminated after {pl_module.images_seen} images; the same command resumes from {checkpoint}"
            print(f"diffgan: {message}", file=sys.stderr)
        raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.images_seen != self._saved_at:
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a checkpoint to a partial file, then rename it (collective: every process must call it)."""
        last = run_folder(trainer) / "checkpoints" / "last.ckpt"
        partial = last.with_name("last.ckpt.partial")
        try:
            trainer.save_checkpoint(partial)
        except OSError as error:
            raise UserError(f"{partial}: the checkpoint cannot be written ({error})") from error
        for logger in trainer.loggers:
            logger.save()  # so that the curves on disk reach as far as the weights
        if trainer.is_global_zero:
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            if last.exists():
                last.replace(last.with_name("previous.ckpt"))
            partial.replace(last)
        trainer.strategy.barrier()
        self._saved_at, pl_module.last_checkpoint = pl_module.images_seen, last
