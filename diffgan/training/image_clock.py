"""The clock of a distillation counts images."""

import lightning.pytorch as pl

from diffgan.pairs.pair_set import PairBatch


def passed(every_images: int, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: PairBatch) -> bool:
    """Whether the images seen passed a multiple of `every_images` in the batch that has just ended."""
    now = pl_module.images_seen
    before = now - len(batch.prompt) * trainer.world_size
    return now // every_images > before // every_images
