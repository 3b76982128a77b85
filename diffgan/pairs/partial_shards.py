"""Finished batches of unfinished shards, each a file of its own, and what a set's folder shows as a whole.

A part is named by the numbers of its pairs. They were solved together, so a part's bytes depend on nothing else that
may differ between workers; parts cut for another batch size are of no use to a worker, and are left alone.
"""

import contextlib
import json
import re
from typing import NamedTuple

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import load
from torch import Tensor

from diffgan.pairs.claims import CLAIMS
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.shard_format import shard_content
from diffgan.pairs.shard_reader import HEADER, open_shard
from diffgan.storage.local import LocalStore
from diffgan.storage.store import Entry, Store
from diffgan.storage.tensor_files import tensors_digest

PARTS = "parts"
SHARD = re.compile(r"pairs-\d+-of-\d+\.safetensors")
PART = re.compile(r"/(\d+)-(\d+)-(\d+)\.safetensors$")  # shard, first and last pair
CLAIM = re.compile(r"/(\d+)$")


class Part(NamedTuple):
    """Tensors as a shard's, and how many of its prompts the tokenizer cut."""

    tensors: dict[str, Tensor]
    truncated: int


class Look(NamedTuple):
    """What a set's folder shows, by the number of the shard.

    shards: that are whole.  parts: numbers of the finished batches of shards that are not.  claims: of any shard.
    """

    shards: dict[int, Entry]
    parts: dict[int, dict[range, Entry]]
    claims: dict[int, Entry]

    def made(self, manifest: Manifest) -> int:
        """Pairs that are on disk."""
        begun = sum(len(set().union(*parts)) for parts in self.parts.values())
        return sum(len(manifest.span(shard)) for shard in self.shards) + begun


def look(store: Store, manifest: Manifest) -> Look:
    """Three listings; claims and parts first, so that what is finished in between is seen as whole."""
    claims = {int(match[1]): entry for name, entry in store.entries(CLAIMS).items() if (match := CLAIM.search(name))}
    parts = all_parts(store)
    files = {manifest.name(shard): shard for shard in range(manifest.shards)}
    shards = {files[name]: entry for name, entry in store.entries().items() if name in files}
    return Look(shards, {shard: found for shard, found in parts.items() if shard not in shards}, claims)


def part_file(shard: int, numbers: range) -> str:
    """Name in the store of the part that holds these consecutive pairs of a shard."""
    return f"{PARTS}/{shard:05d}-{numbers[0]}-{numbers[-1]}.safetensors"


def all_parts(store: Store) -> dict[int, dict[range, Entry]]:
    """Shard -> numbers of the pairs in each of its parts -> the file."""
    found: dict[int, dict[range, Entry]] = {}
    for name, entry in store.entries(PARTS).items():
        if match := PART.search(name):
            shard, first, last = map(int, match.groups())
            found.setdefault(shard, {})[range(first, last + 1)] = entry
    return found


def write_part(store: Store, manifest: Manifest, shard: int, numbers: range, part: Part) -> None:
    """Write a finished batch."""
    store.write(part_file(shard, numbers), shard_content(manifest, shard, part.tensors, part.truncated))


def read_part(store: Store, manifest: Manifest, shard: int, numbers: range) -> Part | None:
    """A finished batch; None if it is not there, or was damaged: then it is removed.

    Raises:
        UserError: the part is of another set.
    """
    name = part_file(shard, numbers)
    if (content := store.read(name)) is None:
        return None
    try:
        header, tensors = header_of(content), load(content)
        whole = tensors_digest(tensors) == header["digest"]
    except (SafetensorError, ValueError, KeyError):
        whole = False
    if not whole:
        store.remove(name)
        return None
    manifest.require(header, store.path(name))
    return Part(tensors, header["truncated"])


def require_own_leftovers(store: Store, manifest: Manifest) -> None:
    """Look at what a folder without a manifest holds; damaged parts are left to `read_part`.

    Raises:
        UserError: a shard is damaged, or a shard or a part is of another set.
    """
    shards = [name for name in store.entries() if SHARD.fullmatch(name)]
    for name in shards if isinstance(store, LocalStore) else shards[:1]:  # a remote one is copied here
        manifest.require(open_shard(store, name, "run the same command again").header, store.path(name))
    for name in filter(PART.search, store.entries(PARTS)):
        with contextlib.suppress(SafetensorError, KeyError, json.JSONDecodeError):
            manifest.require(header_of(store.read(name) or b""), store.path(name))


def header_of(content: bytes) -> dict:
    """What a shard or part tells of itself; KeyError, ValueError or SafetensorError if it is none."""
    deserialize(content)
    size = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"][HEADER])


def join(parts: list[Part]) -> Part:
    """Parts one after another, as if they had been packed together."""
    tensors = {
        name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors if name != "prompt_offsets"
    }
    lengths = torch.cat([part.tensors["prompt_offsets"].diff() for part in parts])
    tensors["prompt_offsets"] = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Part(tensors, sum(part.truncated for part in parts))
