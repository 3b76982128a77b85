"""Progress bars of pair generation and of distillation: count, rate and time left."""

import sys
import time

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from diffgan.pairs.work_queue import WorkQueue

LINE = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_fmt}, {remaining} left{postfix}\n"
LINE_SECONDS = 10


class _Bar(ProgressBar):
    """A bar on the first process; without a terminal, a line every ten seconds."""

    def __init__(self):
        super().__init__()
        self.bar = None

    def _open(self, description: str, total: int, initial: int, unit: str) -> None:
        style = {} if sys.stderr.isatty() else {"bar_format": LINE, "mininterval": LINE_SECONDS}
        self.bar = tqdm(desc=description, total=total, initial=initial, unit=unit, smoothing=0, miniters=1, **style)

    def _advance_to(self, count: int) -> bool:
        """Move the bar; whether it was drawn."""
        return bool(self.bar is not None and self.bar.update(min(count, self.bar.total) - self.bar.n))

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def disable(self) -> None:
        """Do nothing. Lightning calls this on processes that show no bar; they have none here."""


class PairProgress(_Bar):
    """Pairs of the whole set, whichever worker made them; the rate is that of all workers together."""

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._work_queue = trainer.datamodule.work
        if trainer.is_global_zero and isinstance(self._work_queue, WorkQueue):
            self._open("pairs", self._work_queue.manifest.pairs, self._work_queue.pairs_done(), " pairs")
            self._updated = time.monotonic()

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if self.bar is not None and time.monotonic() - self._updated >= LINE_SECONDS:
            self._advance_to(self._work_queue.pairs_done())
            self._updated = time.monotonic()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is not None:
            self._advance_to(self._work_queue.pairs_done())
        self._close()


class ImageProgress(_Bar):
    """Images of the whole distillation, those before it was resumed included, and the present loss."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and pl_module.images_seen < pl_module.images:
            self._open("distilling", pl_module.images, pl_module.images_seen, " images")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self._advance_to(pl_module.images_seen):  # reading the loss waits for the device: only when it is shown
            self.bar.set_postfix_str(f"loss {pl_module.observed['g/regression'].item():.4f}", refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()
