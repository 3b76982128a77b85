"""Claims: who is making which shard, as small files that keep workers out of each other's way.

Two workers that make the same shard write the same bytes, so a claim saves work and nothing depends on it.
"""

import contextlib
import json
import time
from typing import NamedTuple

from diffgan.errors import UserError
from diffgan.storage.processes import Worker, is_dead, this_worker
from diffgan.storage.store import Entry, Store

CLAIMS = "claims"
REFRESH_SECONDS = 30


class Claim(NamedTuple):
    """worker: that makes the shard.  since: when it took it, seconds since 1970.  refreshed: its last sign, by its own
    clock, for services that tell no times of files."""

    worker: Worker
    since: float
    refreshed: float

    def content(self) -> bytes:
        told = {"since": self.since, "refreshed": self.refreshed}
        return (json.dumps(self.worker._asdict() | told) + "\n").encode()


def claim_file(shard: int) -> str:
    """Name in the store of the claim on a shard."""
    return f"{CLAIMS}/{shard:05d}"


def read_claim(store: Store, shard: int) -> Claim | None:
    """The claim on a shard; None if there is none, or none that can be read."""
    try:
        values = json.loads(store.read(claim_file(shard)) or b"")
        since = float(values["since"])
        return Claim(Worker(*(values[name] for name in Worker._fields)), since, float(values.get("refreshed", since)))
    except (ValueError, TypeError, KeyError):
        return None


def is_free(store: Store, shard: int, entry: Entry, lease_seconds: float) -> bool:
    """Whether a claim binds nobody: its worker has died on this machine, or finished no batch for a whole lease."""
    claim = read_claim(store, shard)
    expired = time.time() - last_sign(claim, entry) > lease_seconds
    return expired or (claim is not None and is_dead(claim.worker))


def last_sign(claim: Claim | None, entry: Entry) -> float:
    """When a claim was taken or refreshed: by the file's time or, where there is none, by what it says itself."""
    return entry.modified or (claim.refreshed if claim else 0.0)


class Claims:
    """The claims of this worker.

    Args:
        store: of the pair set.
        lease_seconds: a claim that was not refreshed for so long is anyone's; longer than the slowest batch takes.

    Attributes:
        held: the shards this worker makes, and its claims.
    """

    def __init__(self, store: Store, lease_seconds: float):
        self.store, self.lease_seconds = store, lease_seconds
        self.held: dict[int, Claim] = {}
        self._refreshed: dict[int, float] = {}

    def take(self, shard: int) -> bool:
        """Claim a shard; whether nobody was faster."""
        claim = Claim(this_worker(), now := time.time(), now)
        with contextlib.suppress(FileNotFoundError):  # the folder was tidied away: the set has become whole
            if self.store.create(claim_file(shard), claim.content()):
                self.held[shard], self._refreshed[shard] = claim, time.monotonic()
                return True
        return False

    def refresh(self) -> None:
        """Tell that this worker gets on, now and then; a claim that another one took over meanwhile is given up."""
        for shard, claim in list(self.held.items()):
            if time.monotonic() - self._refreshed[shard] < REFRESH_SECONDS:
                continue
            if self.store.read(claim_file(shard)) == claim.content():
                claim = claim._replace(refreshed=time.time())
                self.store.write(claim_file(shard), claim.content())
                self.held[shard], self._refreshed[shard] = claim, time.monotonic()
            else:
                self.held.pop(shard, None)

    def release(self, shard: int) -> None:
        """Let a shard go, if it was not taken over."""
        claim = self.held.pop(shard, None)
        if claim is not None and self.store.read(claim_file(shard)) == claim.content():
            self.store.remove(claim_file(shard))

    def abandon(self) -> None:
        """Let all go, if the store still takes it."""
        for shard in list(self.held):
            with contextlib.suppress(UserError):
                self.release(shard)

    def bury(self, claims: dict[int, Entry]) -> bool:
        """Remove those of other workers that bind nobody; whether there were any."""
        free = [
            shard
            for shard, entry in claims.items()
            if shard not in self.held and is_free(self.store, shard, entry, self.lease_seconds)
        ]
        for shard in free:
            self.store.remove(claim_file(shard))
        return bool(free)
