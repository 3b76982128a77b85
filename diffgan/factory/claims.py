"""Claims: who is making which shard, as small files that keep workers out of each other's way.

Two workers that make the same shard write the same bytes, so a claim saves work and nothing depends on it.
"""

import contextlib
import json
import time
from typing import NamedTuple

from diffgan.errors import UserError
from diffgan.store import Entry, Store
from diffgan.workers import Worker, is_dead, this_worker

CLAIMS = "claims"
REFRESH_SECONDS = 30


class Claim(NamedTuple):
    """worker: that makes the shard.  since: when it took it, seconds since 1970."""

    worker: Worker
    since: float

    def content(self) -> bytes:
        return (json.dumps(self.worker._asdict() | {"since": self.since}) + "\n").encode()


def claim_file(shard: int) -> str:
    return f"{CLAIMS}/{shard:05d}"


def read_claim(store: Store, shard: int) -> Claim | None:
    """The claim on a shard; None if there is none, or none that can be read."""
    try:
        values = json.loads(store.read(claim_file(shard)) or b"")
        return Claim(Worker(*(values[name] for name in Worker._fields)), float(values["since"]))
    except (ValueError, TypeError, KeyError):
        return None


def is_free(store: Store, shard: int, entry: Entry, lease_seconds: float) -> bool:
    """Whether a claim binds nobody: its worker has died on this machine, or finished no batch for a whole lease."""
    if time.time() - entry.modified > lease_seconds:
        return True
    claim = read_claim(store, shard)
    return claim is not None and is_dead(claim.worker)


class Claims:
    """The claims of this worker.

    Args:
        store: of the pair set.
        lease_seconds: a claim that was not refreshed for so long is anyone's; longer than the slowest batch takes.

    Attributes:
        held: the shards this worker makes, and the content of its claims.
    """

    def __init__(self, store: Store, lease_seconds: float):
        self.store, self.lease_seconds = store, lease_seconds
        self.held: dict[int, bytes] = {}
        self._refreshed: dict[int, float] = {}

    def take(self, shard: int) -> bool:
        """Claim a shard; whether nobody was faster."""
        content = Claim(this_worker(), time.time()).content()
        with contextlib.suppress(FileNotFoundError):  # the folder was tidied away: the set has become whole
            if self.store.create(claim_file(shard), content):
                self.held[shard], self._refreshed[shard] = content, time.monotonic()
                return True
        return False

    def refresh(self) -> None:
        """Tell that this worker gets on, now and then; a claim that another one took over meanwhile is given up."""
        for shard, content in list(self.held.items()):
            if time.monotonic() - self._refreshed[shard] < REFRESH_SECONDS:
                continue
            if self.store.read(claim_file(shard)) == content:
                self.store.write(claim_file(shard), content)
                self._refreshed[shard] = time.monotonic()
            else:
                self.held.pop(shard, None)

    def release(self, shard: int) -> None:
        """Let a shard go, if it was not taken over."""
        content = self.held.pop(shard, None)
        if content is not None and self.store.read(claim_file(shard)) == content:
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
