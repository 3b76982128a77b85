"""Claims: small files that say which worker makes which shard, so that workers do not make the same one.

Two workers that make the same shard write the same bytes, so a claim saves work and correctness does not depend on it.
"""

import contextlib
import json
import time
from typing import NamedTuple

from diffgan.errors import UserError
from diffgan.storage.json_files import parse_object
from diffgan.storage.processes import Worker, is_dead, this_worker
from diffgan.storage.store import Entry, Store

CLAIMS = "claims"  # the folder
MAX_BYTES = 1 << 16  # of a claim's file
REFRESH_SECONDS = 30


class Claim(NamedTuple):
    """The content of a claim's file.

    worker: the process that makes the shard.  since: when it acquired the claim, in seconds since 1970.
    refreshed: when it last refreshed the claim, by its own clock, for services that report no file times.
    """

    worker: Worker
    since: float
    refreshed: float

    def content(self) -> bytes:
        """The bytes of the file: one line of JSON."""
        times = {"since": self.since, "refreshed": self.refreshed}
        return (json.dumps(self.worker._asdict() | times) + "\n").encode()


def claim_name(shard: int) -> str:
    """Name in the store of the claim on a shard."""
    return f"{CLAIMS}/{shard:05d}"


def read_claim(store: Store, shard: int) -> Claim | None:
    """The claim on a shard; None if there is none, or if its file is not a claim."""
    try:
        values = parse_object(store.read(claim_name(shard), MAX_BYTES) or b"", MAX_BYTES)
        worker = Worker(*(Worker.__annotations__[name](values[name]) for name in Worker._fields))
        since = float(values["since"])
        return Claim(worker, since, float(values.get("refreshed", since)))
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def is_stale(store: Store, shard: int, entry: Entry, lease_seconds: float) -> bool:
    """Whether anyone may take over a claim: its worker died on this machine, or did not refresh it for a lease."""
    claim = read_claim(store, shard)
    expired = time.time() - last_refresh(claim, entry) > lease_seconds
    return expired or (claim is not None and is_dead(claim.worker))


def last_refresh(claim: Claim | None, entry: Entry) -> float:
    """When a claim was acquired or refreshed (seconds since 1970): by the file's time or, without one, by its content.

    It is 0 for a file without a time that is not a claim.
    """
    return entry.modified or (claim.refreshed if claim else 0.0)


class Claims:
    """The claims of this worker.

    Args:
        store: of the pair set.
        lease_seconds: a claim that was not refreshed for so long is stale; longer than the slowest batch takes.

    Attributes:
        held: the claims of this worker, by the number of the shard.
    """

    def __init__(self, store: Store, lease_seconds: float):
        self.store, self.lease_seconds = store, lease_seconds
        self.held: dict[int, Claim] = {}
        self._refreshed: dict[int, float] = {}

    def acquire(self, shard: int) -> bool:
        """Claim a shard; false if another worker holds it."""
        claim = Claim(this_worker(), now := time.time(), now)
        with contextlib.suppress(FileNotFoundError):  # another worker has finished the set and removed the folder
            if self.store.create(claim_name(shard), claim.content()):
                self.held[shard], self._refreshed[shard] = claim, time.monotonic()
                return True
        return False

    def refresh(self) -> None:
        """Refresh the claims that are due; a claim that another worker has taken over is given up."""
        for shard, claim in list(self.held.items()):
            if time.monotonic() - self._refreshed[shard] < REFRESH_SECONDS:
                continue
            if self._is_ours(shard, claim):
                claim = claim._replace(refreshed=time.time())
                self.store.write(claim_name(shard), claim.content())
                self.held[shard], self._refreshed[shard] = claim, time.monotonic()
            else:
                self.held.pop(shard, None)

    def release(self, shard: int) -> None:
        """Give up the claim on a shard; its file is removed unless another worker has taken it over."""
        claim = self.held.pop(shard, None)
        if claim is not None and self._is_ours(shard, claim):
            self.store.remove(claim_name(shard))

    def release_all(self) -> None:
        """Release every claim; one that the store refuses to remove stays until its lease ends."""
        for shard in list(self.held):
            with contextlib.suppress(UserError):
                self.release(shard)

    def remove_stale(self, claims: dict[int, Entry]) -> bool:
        """Remove the stale claims of other workers; whether there were any.

        Args:
            claims: the claims of all workers, by the number of the shard.
        """
        others = {shard: entry for shard, entry in claims.items() if shard not in self.held}
        stale = [shard for shard, entry in others.items() if is_stale(self.store, shard, entry, self.lease_seconds)]
        for shard in stale:
            self.store.remove(claim_name(shard))
        return bool(stale)

    def _is_ours(self, shard: int, claim: Claim) -> bool:
        """Whether the file of a claim is the one this worker wrote."""
        return self.store.read(claim_name(shard)) == claim.content()
