"""The teacher's solutions outside of the factory: through the same trainer and module, nothing on disk."""

from collections.abc import Sequence

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from diffgan.pairs.generation import PairGeneration, PromptBatch
from diffgan.pairs.pair_set import PairBatch

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def simulate(
    module: PairGeneration, batches: Sequence[PromptBatch], precision: str, callbacks: Sequence[pl.Callback] = ()
) -> list[PairBatch]:
    """The pairs of each batch, made on this machine's device (the first, if there are several)."""
    trainer = pl.Trainer(accelerator="auto", devices=1, precision=precision, callbacks=list(callbacks), **QUIET)
    return trainer.predict(module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
