"""Prompts and seeds of the pairs that a teacher is asked to make."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch

from diffgan.errors import UserError
from diffgan.generation import PromptBatch
from diffgan.noise import SEEDS


def read_prompts(file: Path) -> list[str]:
    """The prompts of a UTF-8 text file, one a line; blank lines are skipped.

    Raises:
        UserError: the file is missing, not UTF-8, or holds no prompt.
    """
    try:
        lines = Path(file).read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"prompts {file}: {error.strerror}; name a text file with one prompt a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"prompts {file}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"prompts {file}: no prompt in it; write one prompt a line")
    return prompts


class PromptBatches:
    """Batches of pairs cut from spans of their numbers; no batch crosses the end of a span."""

    def __init__(self, prompts: Sequence[str], seed_base: int, batch_size: int, spans: Sequence[range]):
        self.prompts, self.seed_base = prompts, seed_base
        self.batches = [span[i : i + batch_size] for span in spans for i in range(0, len(span), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PromptBatch]:
        for numbers in self.batches:
            yield PromptBatch(
                seed=torch.tensor([self.seed_base + i for i in numbers]),
                prompt=[self.prompts[i % len(self.prompts)] for i in numbers],
            )


class Prompts(pl.LightningDataModule):
    """Pair i takes prompt i modulo their number, and seed `seed_base + i`.

    Args:
        prompts: UTF-8 text, one prompt a line; blank lines are skipped.
        pairs: how many pairs the set has.
        seed_base: seed of the first pair; all seeds lie in [0, 2^32).
        batch_size: pairs a batch and process.

    Attributes:
        prompts: the prompts of the file, from `setup` on.
        spans: numbers of the pairs this process makes; `PairWriter` leaves out what is on disk or another process's.
        finished: pairs of the set that were on disk before.
    """

    def __init__(self, prompts: Path, pairs: int, seed_base: int, batch_size: int):
        super().__init__()
        self.file, self.prompts = prompts, []
        self.pairs, self.seed_base, self.batch_size = pairs, seed_base, batch_size
        self.spans, self.finished = [range(pairs)], 0
        self.allow_zero_length_dataloader_with_multiple_devices = True  # more processes than shards

    def setup(self, stage: str) -> None:
        """Read the prompts.

        Raises:
            UserError: a number is out of range, or the prompt file holds no prompts.
        """
        if self.pairs < 1 or self.batch_size < 1:
            raise UserError(f"pairs {self.pairs}, batch_size {self.batch_size}: both must be at least 1")
        if self.seed_base < 0 or self.seed_base + self.pairs > SEEDS:
            raise UserError(f"seed_base {self.seed_base}: the seeds of {self.pairs} pairs do not lie in [0, 2^32)")
        self.prompts = read_prompts(self.file)

    def predict_dataloader(self) -> PromptBatches:
        return PromptBatches(self.prompts, self.seed_base, self.batch_size, self.spans)
