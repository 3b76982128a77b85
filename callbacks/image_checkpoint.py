"""Atomic checkpoints at intervals of images, of the best validation, and on SIGTERM and Ctrl-C."""

import math
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from callbacks.monitor import Monitor
from callbacks.run_folder import run_folder
from diffgan.errors import UserError
from diffgan.numbers import require
from diffgan.training.checkpoint_io import StreamingCheckpointIO, stream_checkpoints
from diffgan.training.checkpoints import BEST, LAST, PARTIAL, PREVIOUS, keep_as, replace_last
from diffgan.training.image_clock import ImageInterval
from diffgan.training.refusals import stop_together

SIGNAL_CHECK_BATCHES = 8  # interval at which several processes exchange whether one received a signal or failed


class _Unnamed(NamedTuple):
    """A checkpoint that was begun and has no name yet.

    best: it is that of the lowest value of `monitor`.
    again: of the same moment as the run's last one, whose place it takes.
    """

    best: bool
    again: bool


class ImageCheckpoint(Checkpoint):
    """Write `checkpoints/last.ckpt` in the run's folder every `every_images` images and at the end of the training.

    The checkpoint before is kept as `previous.ckpt`. A file gets its name only when it is complete, and `diffgan fit`
    resumes from it automatically. After SIGTERM (a preempted machine) or Ctrl-C, a checkpoint is written at the end of
    the batch (of several processes: within eight batches) and the process exits with code 143 or 130. A second Ctrl-C
    ends it immediately.

    Args:
        every_images: images between two checkpoints, at least 1.
        monitor: metric of validation or evaluation, e.g. "validation/mse" or "evaluation/fid". After a validation that
            measured it with the lowest value so far, a checkpoint is written and kept as `best.ckpt`.
        asynchronous: copy the checkpoint to host memory (every saved tensor once: the size of the file) and write it
            while the training continues. It gets its name at the end of the first batch after it was written; a
            validation waits for that.

    Raises:
        UserError: `every_images` is out of range.
    """

    def __init__(self, every_images: int, monitor: str | None = None, asynchronous: bool = False):
        require("every_images", every_images, least=1)
        self.interval, self.monitor, self.asynchronous = ImageInterval(every_images), monitor, asynchronous
        self._monitored = Monitor(type(self).__name__, monitor) if monitor else None
        self._saved_at = -1  # images seen by the newest checkpoint, or by the one that was loaded
        self._written_at = -1  # images seen by the newest checkpoint that this process wrote
        self._unnamed: _Unnamed | None = None
        self._failure: UserError | None = None  # why this process could not write a checkpoint
        self._io: StreamingCheckpointIO | None = None
        self._last = Path(LAST)
        self._signal = 0  # number of the signal that was received
        self._handlers = {}  # signal handlers from before the training

    @staticmethod
    def newest(trainer: pl.Trainer) -> Path | None:
        """The newest checkpoint of the run: `previous.ckpt` if the run was killed between the two renames of `save`."""
        folder = run_folder(trainer) / "checkpoints"
        return next((folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()), None)

    # ---- course of the training ----

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._io = stream_checkpoints(trainer.strategy)
            if self._monitored is not None:
                self._monitored.check(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interval.start(pl_module.images_seen)
        self._saved_at, self._written_at, self._signal = pl_module.images_seen, -1, 0
        self._failure = None
        self._last = run_folder(trainer) / "checkpoints" / LAST
        pl_module.last_checkpoint = self.newest(trainer)
        if self._monitored is not None and not self._last.with_name(BEST).is_file():
            self._monitored.best = math.inf  # that of another run's folder
        # Lightning's own handler waits for the other processes inside the signal handler, possibly for ever.
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

    def _on_signal(self, number: int, _) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not self._io.is_writing():
            self._finish(trainer, pl_module)
        if self.interval.passed(pl_module.images_seen):
            self.save(trainer, pl_module, in_background=self.asynchronous)
        if trainer.world_size == 1 or batch_idx % SIGNAL_CHECK_BATCHES == 0:
            self._exit_if_any_must(trainer, pl_module)

    def _exit_if_any_must(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End all processes if one could not write a checkpoint, or after a save if one got a signal (collective)."""
        must = bool(self._signal) or self._failure is not None
        if not trainer.strategy.reduce_boolean_decision(must, all=False):
            return
        self._save_last(trainer, pl_module)
        if trainer.is_global_zero:
            checkpoint = pl_module.last_checkpoint
            message = f"terminated after {pl_module.images_seen} images; the same command resumes from {checkpoint}"
            print(f"diffgan: {message}", file=sys.stderr)
        raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save_last(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Name a checkpoint from before the error when it is written; a second Ctrl-C does not wait."""
        if self._unnamed is not None and not isinstance(exception, KeyboardInterrupt):
            self._finish(trainer, pl_module)  # its failure is not reported: the first error is

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    # ---- the best validation ----

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish_together(trainer, pl_module)  # a validation may be long
        if self._monitored is not None:
            self._monitored.start(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if the validation measured `monitor` with the lowest value so far."""
        if self._monitored is None or trainer.state.fn != "fit":
            return
        value = self._monitored.measured(trainer)
        if not trainer.sanity_checking and self._monitored.improves(trainer, value):
            self.save(trainer, pl_module, best=True, in_background=self.asynchronous)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._monitored is None else {"monitor": self.monitor, "best": self._monitored.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._monitored is not None and state_dict.get("monitor") == self.monitor:
            self._monitored.best = state_dict["best"]

    # ---- saving ----

    def save(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, best: bool = False, in_background: bool = False
    ) -> None:
        """Write a checkpoint to a partial file, then rename it (collective: every process must call it).

        Args:
            best: keep it as `best.ckpt` too.
            in_background: return when the checkpoint was copied to host memory; `last_checkpoint` is then still the
                one before. An earlier one that is still being written is waited for.

        Raises:
            UserError, SystemExit: as `stop_together`, if this checkpoint or the earlier one cannot be written.
        """
        self._finish_together(trainer, pl_module)
        with self._io.in_background(in_background):
            trainer.save_checkpoint(self._partial)
        self._unnamed = _Unnamed(best, again=self._written_at == pl_module.images_seen)
        self._saved_at = self._written_at = pl_module.images_seen
        if not in_background:
            self._finish_together(trainer, pl_module)

    def _save_last(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the checkpoint that is being written, and save once more if the training has gone on since."""
        self._finish_together(trainer, pl_module)
        if pl_module.images_seen != self._saved_at:
            self.save(trainer, pl_module)

    def _finish_together(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish, and stop if a checkpoint could not be written (collective): the first process alone writes."""
        self._finish(trainer, pl_module)
        stop_together(trainer, self._failure)

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait until the checkpoint that was begun is written, if there is one, and give it its names."""
        unnamed, self._unnamed = self._unnamed, None
        if unnamed is None:
            return
        try:
            self._io.wait()
            for logger in trainer.loggers:
                logger.save()  # so that the curves on disk reach as far as the weights
            if trainer.is_global_zero:
                if unnamed.best:
                    keep_as(self._partial, self._last.with_name(BEST))
                replace_last(self._partial, keep_previous=not unnamed.again)
            pl_module.last_checkpoint = self._last
        except OSError as error:
            self._failure = UserError(f"{self._partial}: the checkpoint cannot be written ({error})")

    @property
    def _partial(self) -> Path:
        return self._last.with_name(LAST + PARTIAL)
