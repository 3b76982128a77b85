"""What data modules share when they build a loader."""

from typing import TypeVar

import lightning.pytorch as pl

from diffgan.noise import SEEDS
from diffgan.numbers import require, require_batch_size, require_workers

Batch = TypeVar("Batch")


def check_loading(batch_size: int, seed: int, workers: int, **counts: int) -> None:
    """Raises UserError if an argument of a data module is out of range; `counts` are at least 1."""
    require_batch_size("batch_size", batch_size)
    require("seed", seed, least=0, below=SEEDS)
    require_workers("workers", workers)
    for name, count in counts.items():
        require(name, count, least=1)


def unchanged(batch: Batch) -> Batch:
    """Collate function of a data set that returns whole batches."""
    return batch


def trains_on_gpu(trainer: pl.Trainer | None) -> bool:
    """Whether there is a trainer whose process has a GPU. Batches are then loaded into pinned memory."""
    return trainer is not None and trainer.strategy.root_device.type == "cuda"
