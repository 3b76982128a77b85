"""The safetensors files of a set, memory-mapped when they are first asked for."""

import contextlib
import json
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
from diffgan.storage.local import LocalStore
from diffgan.storage.store import Store

MOST_OPEN, MOST_OPEN_REMOTE = 256, 8  # an open copy of a remote file keeps its disk, whatever the cache's limit
HEADER = "diffgan"


class DamagedShard(UserError):
    """A shard's file is no safetensors file of ours, or not all of it."""


class Shard(NamedTuple):
    """header: what its file tells, plain JSON.  tensors: memory-mapped."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]


def open_shard(store: Store, name: str, remedy: str) -> Shard:
    """A file of a store, mapped; a damaged copy of a remote one is fetched again.

    Args:
        remedy: ends the sentence "delete it and ...", should the file be damaged or missing.

    Raises:
        UserError: the file is missing; DamagedShard: it is damaged.
    """
    fault: Exception | None = None
    for _ in range(3):
        if (file := store.local(name)) is None:
            raise UserError(f"{store.path(name)}: shard is missing; {remedy}")
        try:
            with safe_open(file, framework="pt") as archive:
                header = json.loads((archive.metadata() or {})[HEADER])
                return Shard(header, {key: archive.get_tensor(key) for key in archive.keys()})  # noqa: SIM118
        except FileNotFoundError as error:  # another process has made room in the cache
            fault = error
        except (SafetensorError, KeyError, ValueError) as error:
            fault = error
            if not store.forget(name):
                break
    raise DamagedShard(f"{store.path(name)}: shard is damaged ({fault}); delete it and {remedy}") from fault


class ShardReader:
    """The shards of a set by number; the least recently used are closed, so that any number of them will do.

    Args:
        store: of the set.
        name: the file of a shard.
        load: opens and checks a shard.
        rows: of every shard but the last, which may have fewer.
    """

    def __init__(self, store: Store, name: Callable[[int], str], load: Callable[[int], Shard], rows: int):
        self.store, self.name, self.load, self.rows = store, name, load, rows
        self.most = MOST_OPEN if isinstance(store, LocalStore) else MOST_OPEN_REMOTE
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._fetcher = Fetcher(store)

    def __getitem__(self, shard: int) -> Shard:
        if shard not in self._open:
            self._open[shard] = self.load(shard)
            if len(self._open) > self.most:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def expect(self, shards: Sequence[int]) -> None:
        """Fetch copies of remote shards that will be asked for soon, beside the caller's work."""
        if not isinstance(self.store, LocalStore):
            self._fetcher.fetch([self.name(shard) for shard in shards if shard not in self._open])

    def gather(self, numbers: Sequence[int], fields: Sequence[str]) -> list[Tensor]:
        """(N, ...) for each field: the rows of these numbers, in this order, across shards; in memory, not mapped."""
        numbers = np.asarray(numbers, dtype=np.int64)
        shards, rows = np.divmod(numbers, self.rows)
        if len(shards) and (shards == shards[0]).all():
            tensors = self[int(shards[0])].tensors
            return [tensors[field].index_select(0, torch.from_numpy(rows)) for field in fields]
        order = np.argsort(shards, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)
        found = [self.gather(numbers[part], fields) for part in parts if len(part)]
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        return [torch.cat(of)[back] for of in zip(*found, strict=True)]


class Fetcher:
    """A thread that has copies of files made; what goes wrong there is told to whoever needs the file."""

    def __init__(self, store: Store):
        self.store = store
        self._process, self._queue, self._asked = 0, SimpleQueue(), set()

    def fetch(self, names: Sequence[str]) -> None:
        """Have copies made of those of the files that were not asked for last time."""
        if self._process != os.getpid():  # a forked process has no threads
            self._process, self._queue, self._asked = os.getpid(), SimpleQueue(), set()
            threading.Thread(target=self._work, args=(self._queue,), daemon=True).start()
        for name in names:
            if name not in self._asked:
                self._queue.put(name)
        self._asked = set(names)

    def _work(self, queue: SimpleQueue) -> None:
        while True:
            with contextlib.suppress(UserError):
                self.store.local(queue.get())
