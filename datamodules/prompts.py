"""Prompts and seeds of the pairs to be generated."""

import sys
from collections.abc import Iterable, Iterator

import lightning.pytorch as pl
import torch

from diffgan.noise import require_seeds
from diffgan.numbers import require, require_batch_size
from diffgan.pairs.generation import PromptBatch
from diffgan.pairs.shard_format import batches_of
from diffgan.prompts import PromptFile
from diffgan.storage.outputs import require_name


class PromptBatches:
    """The batches of pair numbers in `work`, each read from the prompt file when it is needed.

    How many they are is not known in advance. Without a length Lightning would request a batch before the previous one
    is made; and it must request one more at the end. So `len` is a number that is never reached.
    """

    def __init__(self, data: "Prompts", work: Iterable[range]):
        self.data, self.work = data, work

    def __len__(self) -> int:
        return 2 * self.data.pairs + 1

    def __iter__(self) -> Iterator[PromptBatch]:
        return map(self.data.batch, self.work)


class Prompts(pl.LightningDataModule):
    """Pair i takes prompt `i // repeat` modulo the number of prompts, and seed `seed_base + i`.

    Args:
        prompts: path or URL of a .txt (one prompt per line), .jsonl, .csv, .tsv or .parquet file; blank prompts are
            skipped. Each process reads it once as a whole, and then only the parts it needs.
        pairs: how many pairs the set has; null takes every prompt `repeat` times.
        seed_base: seed of the first pair; all seeds lie in [0, 2^32).
        batch_size: pairs per batch and process.
        column: name of the column of prompts; by default the only one named prompt, caption or text, or (not of
            tables) the only one there is.
        repeat: consecutive pairs with the same prompt and different noises.

    Attributes:
        pairs: their number, from `setup` on.
        work: numbers of the pairs in each batch that this process makes: all pairs, unless `PairWriter` sets it.
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
        require_name("prompts", prompts)
        require_batch_size("batch_size", batch_size)
        self.source, self.column, self.file = str(prompts), column, None
        self.pairs, self.repeat, self.seed_base, self.batch_size = pairs, repeat, seed_base, batch_size
        self.work: Iterable[range] | None = None

    def setup(self, stage: str) -> None:
        """Open the prompt file.

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
        """Digest of the set's prompts, their order and repetitions; from `setup` on."""
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
        if self.work is None:
            return PromptBatches(self, batches_of(range(self.pairs), self.batch_size))
        return PromptBatches(self, self.work)

    def _read(self, begin: int, end: int) -> list[str]:
        """Prompts [begin, end) of the file repeated without end."""
        prompts = []
        while len(prompts) < end - begin:
            position = (begin + len(prompts)) % len(self.file)
            missing = end - begin - len(prompts)
            prompts += self.file.read(range(position, min(position + missing, len(self.file))))
        return prompts

    def _check_numbers(self, pairs: int) -> None:
        """Raises: UserError naming the number that is out of range."""
        require("pairs", pairs, least=1)
        require("repeat", self.repeat, least=1)
        require_seeds("seed_base", self.seed_base, pairs)
