"""Pairs for the distillation: streamed from their shards, in an order that a resumed run takes up exactly."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diffgan.errors import UserError
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.embeddings import Embeddings
from diffgan.pairs.pair_set import PairSet
from diffgan.storage.cache import CACHE_GB


@lru_cache(maxsize=2)
def shuffled(pairs: int, block: int, seed: int, epoch: int) -> np.ndarray:
    """(pairs,) int64: the numbers 0 .. pairs - 1, their blocks shuffled, and the numbers within each block."""
    random = np.random.default_rng([seed, epoch])
    starts = random.permutation(-(-pairs // block)) * block
    return np.concatenate([start + random.permutation(min(block, pairs - start)) for start in starts])


SHARDS_AHEAD = 2  # of a remote set, fetched before the stream comes to them


class _Batches(Dataset):
    """Item p is this process's contiguous share of the global batch that begins at position p of the stream."""

    def __init__(self, pairs: PairSet, training_pairs: int, batch_size: int, seed: int, rank: int, world_size: int):
        self.pairs, self.training_pairs, self.batch_size, self.seed = pairs, training_pairs, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, position: int) -> PairBatch:
        share, size = self.batch_size // self.world_size, self.pairs.manifest.shard_size
        numbers = self._at(np.arange(position, position + self.batch_size))
        self.pairs.shards.expect(self._at(position + np.arange(1, SHARDS_AHEAD + 1) * size) // size)
        return self.pairs.read(numbers[self.rank * share : (self.rank + 1) * share])

    def _at(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of the pairs at these positions of the stream, which is one shuffled epoch after the other."""
        epoch, place = np.divmod(positions, self.training_pairs)
        return np.concatenate([self._epoch(e)[place[epoch == e]] for e in np.unique(epoch)])

    def _epoch(self, epoch: int) -> np.ndarray:
        return shuffled(self.training_pairs, self.pairs.manifest.shard_size, self.seed, int(epoch))


class PairStream:
    """An endless stream of training batches, handed out in stretches of `len` batches: Lightning's epochs.

    `position` counts the pairs that all processes together have been given. It is the whole state: the batch at a
    position is a function of (seed, position, batch size), and every process takes its share of it.
    """

    def __init__(self, batches: _Batches, workers: int, position: int = 0):
        self.batches, self.workers, self.position = batches, workers, position

    def __len__(self) -> int:
        return self.batches.training_pairs // self.batches.batch_size

    def __iter__(self) -> Iterator[PairBatch]:
        size = self.batches.batch_size
        left = len(self) - self.position // size % len(self)
        positions = range(self.position, self.position + left * size, size)
        for batch in _loader(self.batches, positions, self.workers):
            self.position += size  # before the batch leaves: a checkpoint made while it is used counts it
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class _HeldOut(Dataset):
    """Item i is this process's i-th batch of the last pairs of a set; all processes have equally many batches."""

    def __init__(self, pairs: PairSet, validation_pairs: int, batch_size: int, rank: int, world_size: int):
        share = np.arange(len(pairs) - validation_pairs + rank, len(pairs), world_size)
        batches = -(-(validation_pairs // world_size) * world_size // batch_size)
        self.pairs, self.shares = pairs, np.array_split(share, batches) if batches else []

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, i: int) -> PairBatch:
        return self.pairs.read(self.shares[i])


class HeldOutPairs:
    """The held-out pairs, each once and on one process."""

    def __init__(self, batches: _HeldOut, workers: int):
        self.batches, self.workers = batches, workers

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PairBatch]:
        yield from _loader(self.batches, range(len(self)), self.workers)


class _Told(Dataset):
    """The items of a dataset, or the user's mistake in an item's place: workers would wrap it in a traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, i: int) -> PairBatch | UserError:
        try:
            return self.dataset[i]
        except UserError as error:
            return error


def _loader(dataset: Dataset, items: range, workers: int) -> Iterator[PairBatch]:
    """Items of a dataset of whole batches, in order; its own generator leaves the global one alone."""
    settings = {"batch_size": None, "collate_fn": _as_it_is, "generator": torch.Generator()}
    for batch in DataLoader(_Told(dataset), sampler=items, num_workers=workers, **settings):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _as_it_is(batch: PairBatch) -> PairBatch:
    return batch


class LatentPairs(pl.LightningDataModule):
    """A pair set for training and validation.

    Args:
        folder: of the pair set, whole: a path or URL.
        batch_size: pairs of one training batch, all processes together.
        validation_pairs: the last pairs of the set, held out of training.
        seed: another seed is another order.
        workers: processes that read and draw noise ahead of the training.
        embeddings: folder that `diffgan pairs embed` made of the set, path or URL; without it prompts are encoded in
            the training step.
        cache_gb: limit of the copies kept of remote shards, in 10^9 bytes; where, `DIFFGAN_CACHE` of the environment
            says.

    Attributes:
        pairs: the `PairSet`, from `setup` on.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int,
        validation_pairs: int,
        seed: int = 0,
        workers: int = 0,
        embeddings: str | Path | None = None,
        cache_gb: float = CACHE_GB,
    ):
        super().__init__()
        self.folder, self.batch_size, self.validation_pairs = str(folder), batch_size, validation_pairs
        self.seed, self.workers, self.embeddings, self.cache_gb = seed, workers, embeddings, cache_gb
        self.pairs: PairSet | None = None
        self._stream: PairStream | None = None
        self._position = 0  # where the next stream begins

    def setup(self, stage: str) -> None:
        """Open the set.

        Raises:
            UserError: the set is not whole, too small, the batch does not divide among the processes, or the
                embeddings are another teacher's.
        """
        self.pairs = PairSet(self.folder, self.cache_gb)
        if self.embeddings is not None:
            self.pairs.embeddings = Embeddings(self.embeddings, self.pairs.manifest.teacher_digest, self.cache_gb)
        _, world_size = self._place()
        if self.batch_size < 1 or self.batch_size % world_size:
            raise UserError(f"batch_size: {self.batch_size} pairs do not divide among {world_size} processes")
        if 0 < self.validation_pairs < world_size:
            raise UserError(f"validation_pairs: {self.validation_pairs} are too few for {world_size} processes")
        if not 0 <= self.validation_pairs <= len(self.pairs) - self.batch_size:
            raise UserError(
                f"validation_pairs: {self.validation_pairs} of the {len(self.pairs)} pairs in {self.folder} leave no "
                f"batch of {self.batch_size} for training; hold out fewer, or make more pairs"
            )

    def train_dataloader(self) -> PairStream:
        training_pairs = len(self.pairs) - self.validation_pairs
        batches = _Batches(self.pairs, training_pairs, self.batch_size, self.seed, *self._place())
        self._stream = PairStream(batches, self.workers, self._position)
        return self._stream

    def state_dict(self) -> dict[str, int]:
        """The stream's position; Lightning saves the stream's too, but forgets it where it takes an epoch for whole."""
        return {} if self._stream is None else self._stream.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position = state["position"]

    def val_dataloader(self) -> HeldOutPairs:
        return HeldOutPairs(_HeldOut(self.pairs, self.validation_pairs, self.batch_size, *self._place()), self.workers)

    test_dataloader = val_dataloader

    def _place(self) -> tuple[int, int]:
        """(rank, world size); one process where no trainer is attached."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
