"""Which shards, partial shards and claims the folder of a pair set holds: file names only, no file is opened."""

import re
from typing import NamedTuple

from diffgan.pairs.claims import CLAIMS
from diffgan.pairs.manifest import Manifest
from diffgan.storage.store import Entry, Store

PARTIAL_SHARDS = "parts"  # the folder
PARTIAL_SHARD = re.compile(r"/(\d{1,15})-(\d{1,15})-(\d{1,15})\.safetensors$")  # shard, first and last pair
CLAIM = re.compile(r"/(\d{1,15})$")


class SetListing(NamedTuple):
    """The files of a pair set, by the number of the shard.

    shards: the finished shards.  partial_shards: of each unfinished shard, the numbers of the pairs in each of its
    partial shards.  claims: of finished and unfinished shards.
    """

    shards: dict[int, Entry]
    partial_shards: dict[int, dict[range, Entry]]
    claims: dict[int, Entry]

    def partial_entries(self) -> list[tuple[range, Entry]]:
        """The pair numbers and the file of every partial shard."""
        return [item for entries in self.partial_shards.values() for item in entries.items()]

    def pairs_in_shards(self, manifest: Manifest) -> int:
        """Number of pairs in finished shards."""
        return sum(len(manifest.span(shard)) for shard in self.shards)

    def pairs_done(self, manifest: Manifest) -> int:
        """Number of pairs on disk; pairs in two overlapping partial shards count once."""
        in_partial_shards = sum(len(set().union(*entries)) for entries in self.partial_shards.values())
        return self.pairs_in_shards(manifest) + in_partial_shards


def list_set(store: Store, manifest: Manifest) -> SetListing:
    """List a pair set.

    Claims and partial shards are listed before shards, so that a shard that is finished between two listings is
    listed as finished.
    """
    claims = {shard: entry for shard, entry in list_claims(store).items() if shard < manifest.shards}
    partial_shards = {
        shard: {numbers: entry for numbers, entry in entries.items() if _lies_in(numbers, manifest.span(shard))}
        for shard, entries in list_partial_shards(store).items()
        if shard < manifest.shards
    }
    shard_of = {manifest.name(shard): shard for shard in range(manifest.shards)}
    shards = {shard_of[name]: entry for name, entry in store.entries().items() if name in shard_of}
    unfinished = {shard: entries for shard, entries in partial_shards.items() if shard not in shards}
    return SetListing(shards, unfinished, claims)


def list_claims(store: Store) -> dict[int, Entry]:
    """Shard -> the file of its claim."""
    matches = ((CLAIM.search(name), entry) for name, entry in store.entries(CLAIMS).items())
    return {int(match[1]): entry for match, entry in matches if match}


def list_partial_shards(store: Store) -> dict[int, dict[range, Entry]]:
    """Shard -> numbers of the pairs in each of its partial shards -> the file."""
    partial_shards: dict[int, dict[range, Entry]] = {}
    for name, entry in store.entries(PARTIAL_SHARDS).items():
        if match := PARTIAL_SHARD.search(name):
            shard, first, last = map(int, match.groups())
            if first <= last:
                partial_shards.setdefault(shard, {})[range(first, last + 1)] = entry
    return partial_shards


def _lies_in(numbers: range, span: range) -> bool:
    return span.start <= numbers.start and numbers.stop <= span.stop


def partial_shard_name(shard: int, numbers: range) -> str:
    """Name in the store of the partial shard that holds these consecutive pairs of a shard."""
    return f"{PARTIAL_SHARDS}/{shard:05d}-{numbers[0]}-{numbers[-1]}.safetensors"
