"""Work that many processes share: rows by turns, and what they found put together again in order."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class WorkSplit(NamedTuple):
    """One of `world` processes; gather: (n, ...) of each, as many for all -> (world, n, ...) on each (collective)."""

    rank: int
    world: int
    gather: Callable[[Tensor], Tensor]

    def rows(self, count: int) -> list[int]:
        """This process's rows of `count`: every world-th. All get as many; past the end the last one again."""
        return [min(row, count - 1) for row in range(self.rank, -(-count // self.world) * self.world, self.world)]

    def joined(self, mine: Tensor, count: int) -> Tensor:
        """What was found for `rows`, of all processes in order and each row once: (count, ...) (collective)."""
        return self.gather(mine).transpose(0, 1).flatten(0, 1)[:count]


SINGLE_PROCESS = WorkSplit(0, 1, lambda rows: rows[None])
