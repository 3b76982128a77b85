"""When a judge is asked, and what becomes of its figures."""

from abc import abstractmethod

import lightning.pytorch as pl

from diffgan.errors import UserError


class Evaluation(pl.Callback):
    """Judge `generator_ema` at validation and test; log the figures as `judge/<name>`.

    Args:
        every_images: in a fit, judge at the first validation after so many more images; None: never in a fit.
    """

    def __init__(self, every_images: int | None):
        if every_images is not None and every_images < 1:
            raise UserError(f"{type(self).__name__}: every_images {every_images} must be at least 1")
        self.every_images = every_images
        self.figures: dict[str, float | str] = {}  # of the last judgement, with protocol and digest
        self._due = every_images

    @abstractmethod
    def judge(self, pl_module: pl.LightningModule) -> dict[str, float | str]:
        """The figures of now (collective)."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or (trainer.state.fn == "fit" and not self._is_due(pl_module.images_seen)):
            self.figures = {}
            return
        self.run(pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.run(pl_module)

    def _is_due(self, images_seen: int) -> bool:
        if self._due is None or images_seen < self._due:
            return False
        self._due = images_seen + self.every_images
        return True

    def run(self, pl_module: pl.LightningModule) -> None:
        """Judge now, log the numbers and keep them in `figures`."""
        self.figures = self.judge(pl_module)
        pl_module.log_dict({f"judge/{name}": value for name, value in self.figures.items() if isinstance(value, float)})
