"""The work of one worker among many: which batch of pairs it makes next, until the set is complete."""

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from diffgan.errors import UserError
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.claims import CLAIMS, Claims, read_claim
from diffgan.pairs.listing import PARTIAL_SHARDS, SetListing, list_partial_shards, list_set, partial_shard_name
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.partial_shards import PartialShard, join_partial_shards, read_partial_shard, write_partial_shard
from diffgan.pairs.shard_format import batches_of, pack, shard_content
from diffgan.pairs.writer_thread import WriterThread
from diffgan.storage.store import Store

RANDOM = random.SystemRandom()  # workers started with the same seed must not all choose the same shard
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds between two listings of a worker that has nothing to do
REPORTED_PAUSE = 1.0  # seconds; the first longer pause is reported


class WorkQueue:
    """Batches of pair numbers, one by one, until every shard of the set exists; `submit` takes the pairs of each.

    Every finished batch is written at once as a partial shard, so a kill costs a worker the batch it is making. A
    worker makes the shards that it can claim. When none is left, it makes batches of shards that other workers claim,
    any but the first missing one, which they are making: so no worker waits for a slow one longer than one batch or
    one lease.

    Args:
        store: of the pair set.
        manifest: of the pair set.
        batch_size: pairs per batch.
        lease_seconds: a claim whose worker finished no batch for so long is stale.
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
        self.claims, self.writer = Claims(store, lease_seconds), WriterThread()
        self._tried_for_others: set[range] = set()
        self._reported_waiting = False

    def __iter__(self) -> Iterator[range]:
        self.claims.remove_stale(self._list().claims)
        pause = FIRST_PAUSE
        while len((listing := self._list()).shards) < self.manifest.shards:
            self.writer.check()
            if (shard := self._acquire_shard(listing)) is not None:
                yield from self._remaining_batches(shard)
            elif (numbers := self._batch_of_another_worker(listing)) is not None:
                yield numbers
            elif not self.claims.remove_stale(listing.claims):
                pause = self._pause(pause, listing)
                continue
            pause = FIRST_PAUSE
        self.writer.finish()
        self.manifest.require_unchanged(self.store)
        self._clean_up()

    def submit(self, pairs: PairBatch, truncated: int) -> None:
        """Have a finished batch written by the writer thread.

        Args:
            pairs: of one batch of this queue.
            truncated: how many of its prompts the tokenizer truncated.

        Raises:
            UserError: an earlier batch could not be written.
        """
        first = int(pairs.seed[0]) - self.manifest.seed_base
        numbers = range(first, first + len(pairs.seed))
        self.writer.submit(partial(self._write, numbers, pairs, truncated))

    def pairs_done(self) -> int:
        """Number of pairs of the set that are on disk, whichever worker made them."""
        return self._list().pairs_done(self.manifest)

    def close(self) -> None:
        """Wait for what is being written, and release the claims."""
        self.writer.close()
        self.claims.release_all()

    def _list(self) -> SetListing:
        return list_set(self.store, self.manifest)

    def _batches(self, shard: int) -> list[range]:
        return batches_of(self.manifest.span(shard), self.batch_size)

    # ---- what to make next ----

    def _acquire_shard(self, listing: SetListing) -> int | None:
        """Claim a shard, one with partial shards if there is any; None if other workers have claimed them all."""
        taken = listing.shards.keys() | listing.claims.keys()
        free = [shard for shard in range(self.manifest.shards) if shard not in taken]
        RANDOM.shuffle(free)
        begun_first = sorted(free, key=lambda shard: shard not in listing.partial_shards)
        return next(filter(self.claims.acquire, begun_first), None)

    def _remaining_batches(self, shard: int) -> Iterator[range]:
        """The batches of a shard that no worker has made yet; then its partial shards are joined."""
        done: set[range] = set()
        while shard in self.claims.held:
            done |= list_partial_shards(self.store).get(shard, {}).keys()
            missing = [numbers for numbers in self._batches(shard) if numbers not in done]
            if not missing:
                break
            yield missing[0]
            done.add(missing[0])
        self.writer.submit(partial(self._finish, shard))

    def _batch_of_another_worker(self, listing: SetListing) -> range | None:
        """A batch of the shard with most batches left, among those that other workers claim."""
        claimed = [shard for shard in listing.claims if shard not in listing.shards and shard not in self.claims.held]
        most = max((self._untried_batches(shard, listing) for shard in claimed), key=len, default=[])
        if not most:
            return None
        numbers = RANDOM.choice(most)
        self._tried_for_others.add(numbers)
        return numbers

    def _untried_batches(self, shard: int, listing: SetListing) -> list[range]:
        """The missing batches of another worker's shard, except the first, which that worker is making."""
        done = listing.partial_shards.get(shard, {})
        missing = [numbers for numbers in self._batches(shard) if numbers not in done]
        return [numbers for numbers in missing[1:] if numbers not in self._tried_for_others]

    def _pause(self, seconds: float, listing: SetListing) -> float:
        """Wait for other workers; returns the length of the next pause, which is longer."""
        self.on_pause()
        if seconds > REPORTED_PAUSE and not self._reported_waiting:
            self._report_waiting(listing)
        time.sleep(seconds)
        return min(seconds * 1.5, LONGEST_PAUSE)

    def _report_waiting(self, listing: SetListing) -> None:
        """Print which worker is waited for, once."""
        claims = {shard: read_claim(self.store, shard) for shard in listing.claims if shard not in listing.shards}
        workers = [
            f"shard {shard} ({claim.worker.host}, process {claim.worker.pid})"
            for shard, claim in claims.items()
            if claim is not None
        ]
        if workers:
            more = f" and {len(workers) - 1} more" if len(workers) > 1 else ""
            print(f"diffgan: {self.store.place}: waiting for {workers[0]}{more}", file=sys.stderr)
            self._reported_waiting = True

    # ---- what the writer thread does ----

    def _write(self, numbers: range, pairs: PairBatch, truncated: int) -> None:
        shard = numbers[0] // self.manifest.shard_size
        file = self.store.path(partial_shard_name(shard, numbers))
        partial_shard = PartialShard(pack(pairs, self.manifest.store_noise, file), truncated)
        self.manifest.require_unchanged(self.store)
        try:
            write_partial_shard(self.store, self.manifest, shard, numbers, partial_shard)
        except UserError:
            if shard not in self._list().shards:  # else another worker finished the set and removed the folder
                raise
        self.claims.refresh()

    def _finish(self, shard: int) -> None:
        """Join the partial shards of a shard, if all exist and this worker still holds the claim."""
        if shard not in self.claims.held:
            return
        partial_shards = [
            read_partial_shard(self.store, self.manifest, shard, numbers) for numbers in self._batches(shard)
        ]
        if None not in partial_shards:
            joined = join_partial_shards(partial_shards)
            content = shard_content(self.manifest, shard, joined.tensors, joined.truncated, joined.made)
            self.manifest.require_unchanged(self.store)
            self.store.write(self.manifest.name(shard), content)
            self._remove_partial_shards(shard)
        self.claims.release(shard)

    # ---- removing what a complete set does not need ----

    def _remove_partial_shards(self, shard: int) -> None:
        for numbers in list_partial_shards(self.store).get(shard, {}):
            self.store.remove(partial_shard_name(shard, numbers))

    def _clean_up(self) -> None:
        """Remove claims, partial shards and half-written files, and their folders."""
        for shard in list_partial_shards(self.store):
            self._remove_partial_shards(shard)
        for name in self.store.entries(CLAIMS):
            self.store.remove(name)
        folders = (CLAIMS, PARTIAL_SHARDS)
        with contextlib.suppress(UserError):
            self.store.sweep(self.claims.lease_seconds, folders)
        self.store.prune(folders)
