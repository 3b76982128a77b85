"""Where a run keeps what it makes."""

from pathlib import Path

import lightning.pytorch as pl


def run_folder(trainer: pl.Trainer) -> Path:
    """The logger's folder, or the trainer's root folder without a logger (collective: every process calls it)."""
    return Path(trainer.log_dir or trainer.default_root_dir)
