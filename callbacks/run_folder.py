"""The folder of a run: checkpoints, curves, configurations, samples."""

from pathlib import Path

import lightning.pytorch as pl


def run_folder(trainer: pl.Trainer) -> Path:
    """The logger's folder, or without a logger the trainer's root folder (collective: every process must call it)."""
    return Path(trainer.log_dir or trainer.default_root_dir)
