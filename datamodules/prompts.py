"""Prompts and seeds of the pairs that a teacher is asked to make."""

import sys
from collections.abc import Iterable, Iterator

import lightning.pytorch as pl
import torch

from diffgan.errors import UserError
from diffgan.noise import SEEDS
from diffgan.pairs.generation import PromptBatch
from diffgan.pairs.shard_format import cut
from diffgan.prompts import PromptFile


class PromptBatches:
    """The batches whose numbers `work` names, each read when it is asked for.

    Nobody knows before how many they are. Lightning, told of no length, would ask for a batch before the one before it
    is made, and must ask once more at the end; so it is told a length that is not reached.
    """

    def __init__(self, data: "Prompts", work: Iterable[range]):
        self.data, self.work = data, work

    def __len__(self) -> int:
        return 2 * self.data.pairs + 1

    def __iter__(self) -> Iterator[PromptBatch]:
        return map(self.data.batch, self.work)


class Prompts(pl.LightningDataModule):
    """Pair i takes prompt `i // repeat` modulo their number, and seed `seed_base + i`.

    Args:
        prompts: path or URL of a .txt (one prompt a line), .jsonl, .csv, .tsv or .parquet file; blank prompts are
            skipped. It is read through once by each process, and in parts from then on.
        pairs: how many pairs the set has; null takes every prompt `repeat` times.
        seed_base: seed of the first pair; all seeds lie in [0, 2^32).
        batch_size: pairs a batch and process.
        column: holds the prompts; by default the only one named prompt, caption or text, or (not of tables) the only
            one there is.
        repeat: consecutive pairs with the same prompt and different noises.

    Attributes:
        pairs: their number, from `setup` on.
        work: numbers of the pairs in each batch that this process makes: all, unless `PairWriter` says which.
    """

    def __init__(
        self,
        prompts: str,
        pairs: int | None,
        seed_base: int,
        batch_size: int,
        column: str | None = None,
        repeat: int = 1,
    ):
        super().__init__()
        self.source, self.column, self.file = str(prompts), column, None
        self.pairs, self.repeat, self.seed_base, self.batch_size = pairs, repeat, seed_base, batch_size
        self.work: Iterable[range] | None = None

    def setup(self, stage: str) -> None:
        """Open the prompts.

        Raises:
            UserError: a number is out of range, or the file cannot be read or holds no prompts.
        """
        self._check_numbers(pairs=1 if self.pairs is None else self.pairs)
        self.file = PromptFile(self.source, self.column)
        if self.pairs is None:
            self.pairs = len(self.file) * self.repeat
            self._check_numbers(self.pairs)
        if self.file.blank and (self.trainer is None or self.trainer.is_global_zero):
            counts = f"{len(self.file)} prompts, {self.file.blank} blank ones skipped"
            print(f"diffgan: prompts {self.source}: {counts}", file=sys.stderr)

    @property
    def prompts_digest(self) -> str:
        """What the set's prompts are, in which order and how often each; from `setup` on."""
        return self.file.digest if self.repeat == 1 else f"{self.file.digest} x{self.repeat}"

    def batch(self, numbers: range) -> PromptBatch:
        """Seeds and prompts of consecutive pairs; from `setup` on.

        Raises:
            UserError: the prompt file cannot be read any more, or was changed.
        """
        first, last = numbers[0] // self.repeat, numbers[-1] // self.repeat
        prompts = self._read(first, last + 1)
        seed = torch.arange(self.seed_base + numbers.start, self.seed_base + numbers.stop)
        return PromptBatch(seed, [prompts[i // self.repeat - first] for i in numbers])

    def transfer_batch_to_device(self, batch: PromptBatch, device: torch.device, dataloader_idx: int) -> PromptBatch:
        return batch  # noise is drawn from the seeds on the CPU

    def predict_dataloader(self) -> PromptBatches:
        return PromptBatches(self, cut(range(self.pairs), self.batch_size) if self.work is None else self.work)

    def _read(self, begin: int, end: int) -> list[str]:
        """Prompts [begin, end) of the file repeated for ever."""
        prompts = []
        while len(prompts) < end - begin:
            place, wanted = (begin + len(prompts)) % len(self.file), end - begin - len(prompts)
            prompts += self.file.read(range(place, min(place + wanted, len(self.file))))
        return prompts

    def _check_numbers(self, pairs: int) -> None:
        for name, value in {"pairs": pairs, "batch_size": self.batch_size, "repeat": self.repeat}.items():
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1")
        if self.seed_base < 0 or self.seed_base + pairs > SEEDS:
            raise UserError(f"seed_base {self.seed_base}: the seeds of {pairs} pairs do not lie in [0, 2^32)")
