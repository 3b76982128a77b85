"""The work of an evaluation split over processes: whole batches in turn, and their results gathered in order."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm


class WorkSplit(NamedTuple):
    """One process of several.

    rank, world: number of this process and of all.
    gather: collective; (n, ...) of each process, n the same for all -> (world, n, ...) on each.
    """

    rank: int
    world: int
    gather: Callable[[Tensor], Tensor]

    def batches(self, count: int, size: int) -> list[range]:
        """This process's batches of `count` rows: every world-th of those that one process would make.

        All processes get as many, so that the collective calls of a sharded network match: past the end the last
        batch is repeated.
        """
        whole = [range(start, min(start + size, count)) for start in range(0, count, size)]
        turns = -(-len(whole) // self.world)
        return [whole[min(turn * self.world + self.rank, len(whole) - 1)] for turn in range(turns)]

    def in_order(self, own: Tensor, count: int, size: int) -> Tensor:
        """Results of `batches`, of all processes in order and each row once: (count, ...) on the CPU (collective)."""
        results = torch.cat(self.gather_list(own))
        rows = [
            row
            for rank in range(self.world)
            for batch in self._replace(rank=rank).batches(count, size)
            for row in batch
        ]
        ordered = results.new_empty(count, *results.shape[1:])
        ordered[torch.tensor(rows)] = results
        return ordered

    def gather_list(self, own: Tensor, group: Any = None) -> list[Tensor]:
        """`own` (n, ...) of every process, on the CPU (collective); n may differ, as the last batch is smaller.

        It is the `dist_sync_fn` of torchmetrics; `group` is ignored.
        """
        lengths = self.gather(torch.tensor([len(own)])).flatten().tolist()
        padding = own.new_zeros(max(lengths) - len(own), *own.shape[1:])
        gathered = self.gather(torch.cat([own, padding])).cpu()
        return [rows[:length] for rows, length in zip(gathered, lengths, strict=True)]

    def agree(self, condition: bool) -> bool:
        """Whether a condition holds on every process (collective)."""
        return bool(self.gather(torch.tensor([condition])).all())

    def progress(self, batches: list[range], title: str) -> Iterator[list[int]]:
        """The rows of each batch, under a progress bar of the first process that appears after five seconds."""
        total = sum(map(len, batches))
        with tqdm(total=total, desc=title, unit="image", delay=5, leave=False, disable=self.rank > 0) as bar:
            for batch in batches:
                yield list(batch)
                bar.update(len(batch))


SINGLE_PROCESS = WorkSplit(0, 1, lambda rows: rows[None])
