"""Pairs for distillation: an endless stream of training batches whose order a resumed run continues exactly."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.loading import check_loading, trains_on_gpu, unchanged
from diffgan.errors import UserError
from diffgan.numbers import require
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.embeddings import Embeddings
from diffgan.pairs.pair_set import PairSet
from diffgan.storage.cache import CACHE_GB
from diffgan.storage.outputs import require_name

SHARDS_AHEAD = 2  # the least number of shards of a remote set that are fetched before the stream reads them


class EpochOrder(NamedTuple):
    """The order of one epoch.

    numbers: (pairs,) int64, the numbers of the pairs.  shards: the numbers of the shards in the order in which they are
    read.  ends: for each shard, the position after the last pair of its group.
    """

    numbers: np.ndarray
    shards: np.ndarray
    ends: np.ndarray


@lru_cache(maxsize=2)
def shuffled(pairs: int, shard_size: int, seed: int, epoch: int, interleave: int = 1) -> EpochOrder:
    """The numbers 0 .. pairs - 1: shards in random order, each `interleave` of them a group, shuffled together.

    Args:
        shard_size: pairs per shard; the last one may have fewer.
        interleave: shards per group; the last group may have fewer.
    """
    random = np.random.default_rng([seed, epoch])
    shards = random.permutation(-(-pairs // shard_size))
    groups = np.split(shards, range(interleave, len(shards), interleave))
    numbers = []
    for group in groups:
        together = np.concatenate([np.arange(s * shard_size, min((s + 1) * shard_size, pairs)) for s in group])
        numbers.append(together[random.permutation(len(together))])
    ends = np.repeat(np.cumsum([len(group) for group in numbers]), [len(group) for group in groups])
    return EpochOrder(np.concatenate(numbers), shards, ends)


class _TrainingBatches(Dataset):
    """Item p is this process's contiguous share of the global batch that begins at position p of the stream."""

    def __init__(
        self,
        pairs: PairSet,
        training_pairs: int,
        batch_size: int,
        seed: int,
        interleave: int,
        rank: int,
        world_size: int,
    ):
        self.pairs, self.training_pairs, self.batch_size, self.seed = pairs, training_pairs, batch_size, seed
        self.interleave, self.rank, self.world_size = interleave, rank, world_size

    def __getitem__(self, position: int) -> PairBatch:
        share = self.batch_size // self.world_size
        numbers = self._numbers_at(np.arange(position, position + self.batch_size))
        now = set(numbers // self.pairs.manifest.shard_size)
        self.pairs.shards.prefetch([shard for shard in self._shards_ahead(position) if shard not in now])
        return self.pairs.read(numbers[self.rank * share : (self.rank + 1) * share])

    def _shards_ahead(self, position: int) -> list[int]:
        """The shards of the group at a position and those read after it: of the next group, at least two."""
        epoch, offset = divmod(position, self.training_pairs)
        order = self._epoch(epoch)
        first = int(np.searchsorted(order.ends, offset, side="right"))  # of the group's shards
        wanted = self.interleave + max(self.interleave, SHARDS_AHEAD)
        shards = order.shards[first : first + wanted].tolist()
        if (missing := wanted - len(shards)) > 0:  # of the next epoch the whole first group: the last one may be small
            shards += self._epoch(epoch + 1).shards[: max(missing, self.interleave)].tolist()
        return list(dict.fromkeys(shards))

    def _numbers_at(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of the pairs at these ascending positions of the stream, a sequence of shuffled epochs."""
        epochs, offsets = np.divmod(positions, self.training_pairs)
        return np.concatenate([self._epoch(epoch).numbers[offsets[epochs == epoch]] for epoch in np.unique(epochs)])

    def _epoch(self, epoch: int) -> EpochOrder:
        shard_size = self.pairs.manifest.shard_size
        return shuffled(self.training_pairs, shard_size, self.seed, int(epoch), self.interleave)


class PairStream:
    """An endless stream of training batches, in Lightning's epochs of `len` batches each.

    Attributes:
        position: number of pairs that all processes together have received. It is the whole state: the batch at a
            position is a function of (seed, position, batch size), and every process takes its share of it.
    """

    def __init__(self, batches: _TrainingBatches, workers: int, position: int = 0, pin_memory: bool = False):
        self.batches, self.workers, self.position, self.pin_memory = batches, workers, position, pin_memory

    def __len__(self) -> int:
        return self.batches.training_pairs // self.batches.batch_size

    def __iter__(self) -> Iterator[PairBatch]:
        size = self.batches.batch_size
        remaining = len(self) - self.position // size % len(self)
        positions = range(self.position, self.position + remaining * size, size)
        for batch in _loader(self.batches, positions, self.workers, self.pin_memory):
            self.position += size  # before the batch is used: a checkpoint made meanwhile counts it
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class _HeldOutBatches(Dataset):
    """Item i is this process's i-th batch of the last pairs of a set; all processes have equally many batches."""

    def __init__(self, pairs: PairSet, validation_pairs: int, batch_size: int, rank: int, world_size: int):
        share = np.arange(len(pairs) - validation_pairs + rank, len(pairs), world_size)
        batches = -(-(validation_pairs // world_size) * world_size // batch_size)
        self.pairs, self.numbers = pairs, np.array_split(share, batches) if batches else []

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> PairBatch:
        return self.pairs.read(self.numbers[i])


class HeldOutPairs:
    """The held-out pairs, each once and on one process."""

    def __init__(self, batches: _HeldOutBatches, workers: int, pin_memory: bool = False):
        self.batches, self.workers, self.pin_memory = batches, workers, pin_memory

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PairBatch]:
        yield from _loader(self.batches, range(len(self)), self.workers, self.pin_memory)


class _ErrorsAsItems(Dataset):
    """The items of a dataset; a `UserError` takes the item's place, as workers would wrap it in a traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, i: int) -> PairBatch | UserError:
        try:
            return self.dataset[i]
        except UserError as error:
            return error


def _loader(dataset: Dataset, items: range, workers: int, pin_memory: bool) -> Iterator[PairBatch]:
    """Items of a dataset of whole batches, in order; its own generator leaves the global one unchanged.

    pin_memory: copies to a GPU then need not be waited for.

    Raises:
        UserError: a worker raised it.
    """
    settings = {"batch_size": None, "collate_fn": unchanged, "generator": torch.Generator(), "pin_memory": pin_memory}
    for batch in DataLoader(_ErrorsAsItems(dataset), sampler=items, num_workers=workers, **settings):
        if isinstance(batch, UserError):
            raise batch
        yield batch


class LatentPairs(pl.LightningDataModule):
    """A pair set for training and validation.

    Args:
        folder: of the complete pair set: a path or URL.
        batch_size: pairs of one training batch, all processes together.
        validation_pairs: how many of the last pairs are held out of training.
        seed: of the order of training pairs.
        workers: processes that read pairs and draw noise ahead of training.
        embeddings: folder that `diffgan pairs embed` made for the set, path or URL; without it prompts are encoded in
            the training step.
        cache_gb: limit of the copies kept of remote shards, in 10^9 bytes; the environment variable `DIFFGAN_CACHE`
            names their folder.
        interleave: shards whose pairs are mixed: a batch draws from so many. Every pair is read once per epoch whatever
            it is, in another order. Of a remote set twice as many shards are kept open.

    Attributes:
        pairs: the `PairSet`, from `setup` on.

    Raises:
        UserError: a number is out of range.
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
        interleave: int = 1,
    ):
        super().__init__()
        require_name("folder", folder)
        check_loading(batch_size, seed, workers)
        require("validation_pairs", validation_pairs, least=0)
        require("cache_gb", cache_gb, above=0)
        require("interleave", interleave, least=1)
        self.folder, self.batch_size, self.validation_pairs = str(folder), batch_size, validation_pairs
        self.seed, self.workers, self.embeddings, self.cache_gb = seed, workers, embeddings, cache_gb
        self.interleave = interleave
        self.pairs: PairSet | None = None
        self._stream: PairStream | None = None
        self._position = 0  # where the next stream starts

    def setup(self, stage: str) -> None:
        """Open the set.

        Raises:
            UserError: the set is incomplete or too small, the batch does not divide among the processes, or the
                embeddings belong to another teacher.
        """
        self.pairs = PairSet(self.folder, self.cache_gb)
        if self.interleave > 1:
            self.pairs.shards.keep_open(2 * self.interleave)  # a batch may reach from one group into the next
        if self.embeddings is not None:
            self.pairs.embeddings = Embeddings(self.embeddings, self.pairs.manifest.teacher_digest, self.cache_gb)
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raises: UserError if the batch or the held-out pairs do not fit the set and the number of processes."""
        _, world_size = self._rank_and_world_size()
        if self.batch_size % world_size:
            raise UserError(f"batch_size: {self.batch_size} pairs do not divide among {world_size} processes")
        if 0 < self.validation_pairs < world_size:
            raise UserError(f"validation_pairs: {self.validation_pairs} are too few for {world_size} processes")
        if not self.validation_pairs <= len(self.pairs) - self.batch_size:
            raise UserError(
                f"validation_pairs: {self.validation_pairs} of the {len(self.pairs)} pairs in {self.folder} leave no "
                f"batch of {self.batch_size} for training; hold out fewer, or make more pairs"
            )

    def train_dataloader(self) -> PairStream:
        training_pairs = len(self.pairs) - self.validation_pairs
        place = self._rank_and_world_size()
        batches = _TrainingBatches(self.pairs, training_pairs, self.batch_size, self.seed, self.interleave, *place)
        self._stream = PairStream(batches, self.workers, self._position, trains_on_gpu(self.trainer))
        return self._stream

    def state_dict(self) -> dict[str, int]:
        """The stream's position; Lightning saves the stream's too, but drops it at the end of an epoch."""
        return {} if self._stream is None else self._stream.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position = state["position"]

    def val_dataloader(self) -> HeldOutPairs:
        place = self._rank_and_world_size()
        batches = _HeldOutBatches(self.pairs, self.validation_pairs, self.batch_size, *place)
        return HeldOutPairs(batches, self.workers, trains_on_gpu(self.trainer))

    test_dataloader = val_dataloader

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Of this process; (0, 1) without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
