"""What one worker of many makes: it claims shards, goes on inside them, helps others, and leaves when all are there."""

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from diffgan.errors import UserError
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.claims import CLAIMS, Claims, read_claim
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.partial_shards import PARTS, Look, Part, all_parts, join, look, part_file, read_part, write_part
from diffgan.pairs.shard_format import cut, pack, shard_content
from diffgan.pairs.writer_thread import WriterThread
from diffgan.storage.store import Store

CHANCE = random.SystemRandom()  # workers started with the same seed must not all go for the same shard
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds between two looks of a worker that has nothing to do


class WorkQueue:
    """Batches of pair numbers, one by one, until every shard of the set is there; `keep` takes what came of each.

    Every finished batch is a part on disk at once, so a kill costs a worker the batch in hand. A worker makes the
    shards it could claim. When none is left it makes batches of shards that are still in others' hands, from anywhere
    but where those are at work, so that nobody waits for a slow worker longer than one batch, or one lease.

    Args:
        store: of the pair set.
        manifest: of the pair set.
        batch_size: pairs a batch.
        lease_seconds: a claim whose worker finished no batch for so long is anyone's.
        on_pause: called before every pause; what it raises ends the work.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        batch_size: int,
        lease_seconds: float,
        on_pause: Callable[[], None] = lambda: None,
    ):
        self.store, self.manifest, self.batch_size, self.on_pause = store, manifest, batch_size, on_pause
        self.claims, self.background = Claims(store, lease_seconds), WriterThread()
        self.helped: set[range] = set()

    def __iter__(self) -> Iterator[range]:
        self.claims.bury(look(self.store, self.manifest).claims)
        pause = FIRST_PAUSE
        while len((seen := look(self.store, self.manifest)).shards) < self.manifest.shards:
            self.background.check()
            if (shard := self._claim(seen)) is not None:
                yield from self._rest_of(shard)
            elif (numbers := self._help(seen)) is not None:
                yield numbers
            elif not self.claims.bury(seen.claims):
                pause = self._pause(pause, seen)
                continue
            pause = FIRST_PAUSE
        self.background.finish()
        self.manifest.require_still(self.store)
        self._tidy()

    def keep(self, pairs: PairBatch, truncated: int) -> None:
        """Have a finished batch written; what writing an earlier one raised comes up here."""
        first = int(pairs.seed[0]) - self.manifest.seed_base
        numbers = range(first, first + len(pairs.seed))
        self.background.submit(partial(self._write, numbers, pairs, truncated))

    def made(self) -> int:
        """Pairs of the whole set that are on disk."""
        return look(self.store, self.manifest).made(self.manifest)

    def close(self) -> None:
        """Wait for what is being written, and let the claims go."""
        self.background.close()
        self.claims.abandon()

    def cuts(self, shard: int) -> list[range]:
        return cut(self.manifest.span(shard), self.batch_size)

    # ---- what to do next ----

    def _claim(self, seen: Look) -> int | None:
        """A shard for this worker, one with parts if there is any; None if others have them all."""
        free = [s for s in range(self.manifest.shards) if s not in seen.shards and s not in seen.claims]
        CHANCE.shuffle(free)
        return next(filter(self.claims.take, sorted(free, key=lambda s: s not in seen.parts)), None)

    def _rest_of(self, shard: int) -> Iterator[range]:
        """The batches of a shard that nobody has made yet; then the shard is put together."""
        made: set[range] = set()
        while shard in self.claims.held:
            made |= all_parts(self.store).get(shard, {}).keys()
            if (missing := next((numbers for numbers in self.cuts(shard) if numbers not in made), None)) is None:
                break
            yield missing
            made.add(missing)
        self.background.submit(partial(self._finish, shard))

    def _help(self, seen: Look) -> range | None:
        """A batch of another worker's shard, not the first one missing, which is in its hands."""
        others = [s for s in seen.claims if s not in seen.shards and s not in self.claims.held]
        missing = [[n for n in self.cuts(s) if n not in seen.parts.get(s, {})][1:] for s in others]
        untried = [[numbers for numbers in batches if numbers not in self.helped] for batches in missing]
        if not (most := max(untried, key=len, default=[])):
            return None
        self.helped.add(numbers := CHANCE.choice(most))
        return numbers

    def _pause(self, seconds: float, seen: Look) -> float:
        """Wait for others, longer every time; how long the next time."""
        self.on_pause()
        if seconds > 1:
            self._tell_of_waiting(seen)
        time.sleep(seconds)
        return min(seconds * 1.5, LONGEST_PAUSE)

    def _tell_of_waiting(self, seen: Look) -> None:
        """Once: for whom."""
        others = {s: read_claim(self.store, s) for s in seen.claims if s not in seen.shards}
        if told := [f"shard {s} ({c.worker.host}, process {c.worker.pid})" for s, c in others.items() if c is not None]:
            more = f" and {len(told) - 1} more" if len(told) > 1 else ""
            print(f"diffgan: {self.store.place}: waiting for {told[0]}{more}", file=sys.stderr)
            self._tell_of_waiting = lambda seen: None

    # ---- what the thread does ----

    def _write(self, numbers: range, pairs: PairBatch, truncated: int) -> None:
        shard = numbers[0] // self.manifest.shard_size
        file = part_file(shard, numbers)
        tensors = pack(pairs, self.manifest.store_noise, self.store.path(file))
        self.manifest.require_still(self.store)
        try:
            write_part(self.store, self.manifest, shard, numbers, Part(tensors, truncated))
        except UserError:
            if shard not in look(self.store, self.manifest).shards:  # else the folder was just tidied away
                raise
        self.claims.refresh()

    def _finish(self, shard: int) -> None:
        """Put the parts of a shard together, if all are there and it is still this worker's."""
        if shard in self.claims.held:
            parts = [read_part(self.store, self.manifest, shard, numbers) for numbers in self.cuts(shard)]
            if None not in parts:
                whole = join(parts)
                content = shard_content(self.manifest, shard, whole.tensors, whole.truncated)
                self.manifest.require_still(self.store)
                self.store.write(self.manifest.name(shard), content)
                self._drop_parts(shard)
            self.claims.release(shard)

    def _drop_parts(self, shard: int) -> None:
        for numbers in all_parts(self.store).get(shard, {}):
            self.store.remove(part_file(shard, numbers))

    def _tidy(self) -> None:
        """The set is whole: leave nothing else."""
        for shard in all_parts(self.store):
            self._drop_parts(shard)
        for name in self.store.entries(CLAIMS):
            self.store.remove(name)
        with contextlib.suppress(UserError):
            self.store.sweep(self.claims.lease_seconds, (CLAIMS, PARTS))
        self.store.prune((CLAIMS, PARTS))
