"""The moving average of the generator: its half-life, and its distance from the generator."""

import lightning.pytorch as pl
import torch

from diffgan.numbers import require
from diffgan.training.ema import own_pairs
from diffgan.training.image_clock import ImageInterval
from diffgan.training.strategies import full_tensor


class EMA(pl.Callback):
    """Set the half-life of `generator_ema` and log its distance from the generator.

    The average itself is a frozen submodule that the LightningModule updates at the end of its training step, so every
    checkpoint contains it. Validation, samples and export use it.

    Args:
        half_life_images: images after which the weight of the old average is halved, at least 0; limited to a quarter
            of the images seen so far.
        on_cpu: in a fit the average stays in the host's memory, and its weights are on the GPU during validation and
            samples only. Every batch then copies the generator's weights to the host and averages them there (by
            estimate a second for the 3.4 GB of SD1.5); use it with large batches. Not with FSDP2.
        log_every_images: images between two logged distances, at least 1.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(self, half_life_images: float, log_every_images: int = 2000, on_cpu: bool = False):
        require("EMA: half_life_images", half_life_images, least=0)
        require("EMA: log_every_images", log_every_images, least=1)
        self.half_life_images, self.on_cpu = half_life_images, on_cpu
        self.interval = ImageInterval(log_every_images)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.ema_half_life_images = self.half_life_images
        pl_module.ema_on_cpu = self.on_cpu and stage == "fit"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interval.start(pl_module.images_seen)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.interval.passed(pl_module.images_seen):
            distance = relative_distance(pl_module.generator_ema, pl_module.generator)
            pl_module.log_curves({"health/ema_distance": distance}, pl_module.images_seen)


@torch.no_grad()
def relative_distance(average: torch.nn.Module, module: torch.nn.Module) -> torch.Tensor:
    """|average - module| / |module| over all parameters that are not shared: () float32."""
    pairs = own_pairs(average.parameters(), module.parameters())
    difference = sum((mean - value.to(mean.device)).float().square().sum() for mean, value in pairs)
    size = sum(value.float().square().sum() for _, value in pairs).to(difference.device)
    return full_tensor(difference / size).sqrt()
