"""Progress of a pair set: pairs a second and time left, counted over the whole set."""

import sys

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

LINE = "{desc}: {n_fmt}/{total_fmt} pairs, {rate_fmt}, {remaining} left\n"
LINE_SECONDS = 10


class PairProgress(ProgressBar):
    """A bar over all pairs of the set, earlier runs included; a line every ten seconds without a terminal.

    It watches the first process and takes the others to keep pace.
    """

    def __init__(self):
        super().__init__()
        self.bar = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data, lines = trainer.datamodule, not sys.stderr.isatty()
        style = {"bar_format": LINE, "mininterval": LINE_SECONDS} if lines else {}
        self.bar = tqdm(
            desc="pairs", total=data.pairs, initial=data.finished, unit=" pairs", smoothing=0, miniters=1, **style
        )

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if self.bar is not None:
            self.bar.update(min(len(batch.seed) * trainer.world_size, self.bar.total - self.bar.n))

    def on_predict_end(self, trainer, pl_module) -> None:
        self._close()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def disable(self) -> None:
        """Lightning asks this of processes that show nothing; they have no bar anyway."""
