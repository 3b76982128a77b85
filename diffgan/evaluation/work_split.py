"""The work of an evaluation split over processes: rows in turn, and their results gathered in order."""

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

    def rows(self, count: int) -> list[int]:
        """This process's rows of `count`: every world-th.

        All processes get as many, so that their collective calls match: past the end the last row is repeated.
        """
        return [min(row, count - 1) for row in range(self.rank, -(-count // self.world) * self.world, self.world)]

    def in_order(self, own: Tensor, count: int) -> Tensor:
        """Results of `rows`, of all processes in order and each row once: (count, ...) on the CPU (collective)."""
        return self.gather(own).transpose(0, 1).flatten(0, 1)[:count].cpu()

    def gather_list(self, own: Tensor, group: Any = None) -> list[Tensor]:
        """`own` of every process, on the CPU (collective): the `dist_sync_fn` of torchmetrics; `group` is ignored."""
        return list(self.gather(own).cpu())

    def agree(self, condition: bool) -> bool:
        """Whether a condition holds on every process (collective)."""
        return bool(self.gather(torch.tensor([condition])).all())


SINGLE_PROCESS = WorkSplit(0, 1, lambda rows: rows[None])


def batches(rows: list[int], size: int, title: str) -> Iterator[list[int]]:
    """At most `size` rows at a time, under a progress bar that appears after five seconds."""
    with tqdm(total=len(rows), desc=title, unit="image", delay=5, leave=False) as bar:
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            yield batch
            bar.update(len(batch))
