"""Reading rows of many safetensors files, each memory-mapped when it is first used."""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffgan.errors import UserError
from diffgan.pairs.headers import header_in
from diffgan.storage.local import LocalStore
from diffgan.storage.store import Store

MAX_OPEN, MAX_OPEN_REMOTE = 256, 8  # an open copy of a remote file occupies disk, whatever the cache's limit
ATTEMPTS = 3


class DamagedShard(UserError):
    """The file of a shard is truncated or is not a safetensors file of diffgan."""


class Shard(NamedTuple):
    """header: the metadata of its file, plain JSON.  tensors: memory-mapped."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]


def open_shard(store: Store, name: str, remedy: str) -> Shard:
    """A file of a store, memory-mapped; a damaged copy of a remote file is fetched again.

    Args:
        remedy: ends the sentence "delete it and ...", should the file be damaged or missing.

    Raises:
        UserError: the file is missing.
        DamagedShard: it is damaged.
    """
    fault: Exception | None = None
    for _ in range(ATTEMPTS):
        if (file := store.local(name)) is None:
            raise UserError(f"{store.path(name)}: shard is missing; {remedy}")
        try:
            with safe_open(file, framework="pt") as archive:
                header = header_in(archive.metadata() or {})
                return Shard(header, {key: archive.get_tensor(key) for key in archive.keys()})  # noqa: SIM118
        except FileNotFoundError as error:  # another process has removed the copy from the cache
            fault = error
        except (OSError, SafetensorError, ValueError) as error:
            fault = error
            if not store.forget(name):
                break
    raise DamagedShard(f"{store.path(name)}: shard is damaged ({fault}); delete it and {remedy}") from fault


class ShardReader:
    """The shards of a set by number; the least recently used ones are closed, so a set may have any number of shards.

    Args:
        store: of the set.
        name: file name of a shard.
        load: opens and checks a shard.
        rows: number of rows of every shard but the last, which may have fewer.
    """

    def __init__(self, store: Store, name: Callable[[int], str], load: Callable[[int], Shard], rows: int):
        self.store, self.name, self.load, self.rows = store, name, load, rows
        self.max_open = MAX_OPEN if isinstance(store, LocalStore) else MAX_OPEN_REMOTE
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._prefetcher = Prefetcher(store)

    def __getstate__(self) -> dict[str, Any]:
        """A process that is started with a copy, such as a worker of a data loader, opens shards of its own."""
        return self.__dict__ | {"_open": OrderedDict(), "_prefetcher": Prefetcher(self.store)}

    def __getitem__(self, shard: int) -> Shard:
        if shard not in self._open:
            self._open[shard] = self.load(shard)
            if len(self._open) > self.max_open:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def keep_open(self, shards: int) -> None:
        """Allow at least so many shards to be open at once."""
        self.max_open = max(self.max_open, shards)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Copy remote shards that will be read soon to the cache, in a thread; nothing is done for local ones."""
        if not isinstance(self.store, LocalStore):
            self._prefetcher.fetch([self.name(shard) for shard in shards if shard not in self._open])

    def gather(self, numbers: Sequence[int], fields: Sequence[str]) -> list[Tensor]:
        """The rows of these numbers, in this order, from any number of shards.

        Returns:
            For each field a tensor (N, ...), in memory, not mapped.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        shards, rows = np.divmod(numbers, self.rows)
        tensors = self[int(shards[0])].tensors
        if (shards == shards[0]).all():
            return [tensors[field].index_select(0, torch.from_numpy(rows)) for field in fields]
        gathered = [tensors[field].new_empty(len(numbers), *tensors[field].shape[1:]) for field in fields]
        order = np.argsort(shards, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            tensors, places = self[int(shards[group[0]])].tensors, torch.from_numpy(group)
            for field, rows_of_all in zip(fields, gathered, strict=True):
                rows_of_all.index_copy_(0, places, tensors[field].index_select(0, torch.from_numpy(rows[group])))
        return gathered


class Prefetcher:
    """A thread that has remote files copied to the cache; it ignores errors, which whoever reads the file gets too."""

    def __init__(self, store: Store):
        self.store = store
        self._process, self._queue, self._requested = 0, None, set()

    def fetch(self, names: Sequence[str]) -> None:
        """Have these files copied, except those of the last call."""
        if self._process != os.getpid():  # a forked process has no threads
            self._process, self._queue, self._requested = os.getpid(), SimpleQueue(), set()
            threading.Thread(target=self._work, args=(self._queue,), daemon=True).start()
        for name in names:
            if name not in self._requested:
                self._queue.put(name)
        self._requested = set(names)

    def _work(self, queue: SimpleQueue) -> None:
        while True:
            with contextlib.suppress(UserError):
                self.store.local(queue.get())
