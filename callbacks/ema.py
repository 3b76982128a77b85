"""The moving average of the generator: how fast it follows, and how far away it is."""

import lightning.pytorch as pl
import torch

from diffgan.errors import UserError
from diffgan.training.image_clock import passed
from diffgan.training.strategies import full_tensor


class EMA(pl.Callback):
    """Set the half-life of `generator_ema` and log its distance from the generator.

    The average itself is a frozen submodule that the module updates at the end of its training step, so it is in every
    checkpoint; validation, samples and export use it.

    Args:
        half_life_images: images after which half of the old average is gone (at most a quarter of those seen so far).
        log_every_images: images between two logged distances.
    """

    def __init__(self, half_life_images: float, log_every_images: int = 2000):
        if half_life_images < 0 or log_every_images < 1:
            raise UserError(
                f"EMA: half_life_images {half_life_images} must be at least 0, log_every_images {log_every_images} 1"
            )
        self.half_life_images, self.log_every_images = half_life_images, log_every_images

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.ema_half_life_images = self.half_life_images

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if passed(self.log_every_images, pl_module.images_seen, len(batch.prompt) * trainer.world_size):
            distance = relative_distance(pl_module.generator_ema, pl_module.generator)
            pl_module.log_curves({"health/ema_distance": distance}, pl_module.images_seen)


@torch.no_grad()
def relative_distance(average: torch.nn.Module, module: torch.nn.Module) -> torch.Tensor:
    """|average - module| / |module| over all parameters: () float32."""
    pairs = list(zip(average.parameters(), module.parameters(), strict=True))
    difference = sum((mean - value).float().square().sum() for mean, value in pairs)
    return full_tensor(difference / sum(value.float().square().sum() for _, value in pairs)).sqrt()
