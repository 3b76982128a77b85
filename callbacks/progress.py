"""Progress of a pair set and of a distillation: how many, how fast, how long still."""

import sys
import time

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from diffgan.pairs.work_queue import WorkQueue

LINE = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_fmt}, {remaining} left{postfix}\n"
LINE_SECONDS = 10


class _Bar(ProgressBar):
    """One bar on the first process; a line every ten seconds where there is no terminal."""

    def __init__(self):
        super().__init__()
        self.bar = None

    def _open(self, what: str, total: int, initial: int, unit: str) -> None:
        style = {} if sys.stderr.isatty() else {"bar_format": LINE, "mininterval": LINE_SECONDS}
        self.bar = tqdm(desc=what, total=total, initial=initial, unit=unit, smoothing=0, miniters=1, **style)

    def _advance_to(self, count: int) -> bool:
        """Move the bar; true when it has just been drawn anew."""
        return bool(self.bar is not None and self.bar.update(min(count, self.bar.total) - self.bar.n))

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def disable(self) -> None:
        """Lightning asks this of processes that show nothing; they have no bar anyway."""


class PairProgress(_Bar):
    """Pairs of the whole set, made by whomever and whenever; the rate is that of all workers together."""

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._workshop = trainer.datamodule.work
        if trainer.is_global_zero and isinstance(self._workshop, WorkQueue):
            self._open("pairs", self._workshop.manifest.pairs, self._workshop.made(), " pairs")
            self._looked = time.monotonic()

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if self.bar is not None and time.monotonic() - self._looked >= LINE_SECONDS:
            self._advance_to(self._workshop.made())
            self._looked = time.monotonic()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is not None:
            self._advance_to(self._workshop.made())
        self._close()


class ImageProgress(_Bar):
    """Images of the distillation's whole budget, those before a resumption included, and the loss of now."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and pl_module.images_seen < pl_module.images:
            self._open("distilling", pl_module.images, pl_module.images_seen, " images")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self._advance_to(pl_module.images_seen):  # reading the loss waits for the device: only when it is shown
            self.bar.set_postfix_str(f"loss {pl_module.observed['g/regression'].item():.4f}", refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()
