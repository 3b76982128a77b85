"""What data modules share when they build a loader."""

from typing import TypeVar

import lightning.pytorch as pl

Batch = TypeVar("Batch")


def unchanged(batch: Batch) -> Batch:
    """Collate function of a data set that returns whole batches."""
    return batch


def trains_on_gpu(trainer: pl.Trainer | None) -> bool:
    """Whether there is a trainer whose process has a GPU. Batches are then loaded into pinned memory."""
    return trainer is not None and trainer.strategy.root_device.type == "cuda"
