"""Partial shards: the finished batches of an unfinished shard, each in a file of its own.

A partial shard is named by the numbers of its pairs, which were solved in one batch; its bytes depend on nothing else
that may differ between workers. Partial shards of another batch size are of no use to a worker and are left alone.
"""

from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from diffgan.pairs.headers import header_fault, parse_header
from diffgan.pairs.listing import partial_shard_name
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.shard_format import pairs_fault, shard_content, values_fault
from diffgan.storage.store import Store
from diffgan.storage.tensor_files import tensors_digest


class PartialShard(NamedTuple):
    """tensors: those of a shard, for some of its pairs.  truncated: how many prompts the tokenizer truncated.

    made: how its batches were made, each way once; None if that is what the worker's manifest says, or unknown.
    """

    tensors: dict[str, Tensor]
    truncated: int
    made: list[dict[str, Any]] | None = None


def write_partial_shard(
    store: Store, manifest: Manifest, shard: int, numbers: range, partial_shard: PartialShard
) -> None:
    """Write the finished batch of these pairs.

    Raises:
        UserError: the file cannot be written.
    """
    content = shard_content(manifest, shard, partial_shard.tensors, partial_shard.truncated, partial_shard.made)
    store.write(partial_shard_name(shard, numbers), content)


def read_partial_shard(store: Store, manifest: Manifest, shard: int, numbers: range) -> PartialShard | None:
    """The finished batch of these pairs; None if there is no file, or a damaged one, which is removed.

    Raises:
        UserError: the partial shard belongs to another pair set.
    """
    name = partial_shard_name(shard, numbers)
    if (content := store.read(name)) is None:
        return None
    try:
        header, tensors = parse_header(content), load(content)
        intact = tensors_digest(tensors) == header.get("digest")
    except (SafetensorError, ValueError):
        intact = False
    if intact:
        manifest.require_same(header, store.path(name))
        fault = header_fault(header) or pairs_fault(manifest, len(numbers), tensors) or values_fault(tensors)
        if not fault:
            return PartialShard(tensors, header.get("truncated", 0), header.get("made"))
    store.remove(name)
    return None


def join_partial_shards(partial_shards: list[PartialShard]) -> PartialShard:
    """All pairs of a shard, from its partial shards in order: the tensors are those of packing all pairs at once."""
    columns: dict[str, list[Tensor]] = {name: [] for name in partial_shards[0].tensors}
    for partial_shard in partial_shards:
        for name, tensor in partial_shard.tensors.items():
            columns[name].append(tensor)
    offsets = columns.pop("prompt_offsets")
    tensors = {name: torch.cat(column) for name, column in columns.items()}
    lengths = torch.cat([column.diff() for column in offsets])
    tensors["prompt_offsets"] = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    truncated = sum(partial_shard.truncated for partial_shard in partial_shards)
    return PartialShard(tensors, truncated, _joined_made(partial_shards))


def _joined_made(partial_shards: list[PartialShard]) -> list[dict[str, Any]] | None:
    """Every way in which one of the batches was made, once, in their order; None if one is unknown."""
    joined: list[dict[str, Any]] = []
    for partial_shard in partial_shards:
        if partial_shard.made is None:
            return None
        joined += [made for made in partial_shard.made if made not in joined]
    return joined
