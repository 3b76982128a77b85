"""The tensors and metadata in a shard's file: packing pairs into them, and checking a shard that is read."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from diffgan.errors import UserError
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.headers import HEADER
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.shard_reader import Shard, open_shard
from diffgan.storage.atomic import write_atomic
from diffgan.storage.store import Store
from diffgan.storage.tensor_files import tensors_digest

NOISE_HEAD = 4  # values of z in a shard
NOISE_TOLERANCE = 1e-5  # processors may differ in the last bit of a normal number, generators differ in all
REMEDY = "run `diffgan predict` with the configuration of this set again"


def batches_of(numbers: range, batch_size: int) -> list[range]:
    """Consecutive numbers in batches, the last of which may be smaller.

    The batches of a shard are the same in every run: which pairs are solved together decides how latents are rounded.
    """
    return [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]


def write_shard(folder: Path, manifest: Manifest, shard: int, pairs: PairBatch, truncated: int = 0) -> None:
    """Write one shard.

    Args:
        truncated: how many of its prompts the tokenizer truncated.

    Raises:
        UserError: a latent is not finite in float16, or the file cannot be written.
    """
    file = manifest.file(folder, shard)
    tensors = pack(pairs, manifest.store_noise, str(file))
    write_atomic(file, shard_content(manifest, shard, tensors, truncated))


def pack(pairs: PairBatch, store_noise: bool, file: str) -> dict[str, Tensor]:
    """The tensors of a shard or partial shard; `diffgan.pairs.pair_set` lists them.

    Args:
        file: where they will be written, for the message.

    Raises:
        UserError: a latent is not finite in float16.
    """
    latent = pairs.latent.cpu().half()
    finite = latent.isfinite().flatten(1).all(1)
    if not finite.all():
        seed = pairs.seed[~finite][0].item()
        raise UserError(f"{file}: the latent of seed {seed} is not finite; use another precision or teacher")
    encoded = [prompt.encode() for prompt in pairs.prompt]
    tensors = {
        "latent": latent.contiguous(),
        "seed": pairs.seed,
        "noise_head": pairs.noise.flatten(1)[:, :NOISE_HEAD].clone(memory_format=torch.contiguous_format),
        "prompt_bytes": torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()),
        "prompt_offsets": torch.tensor([0, *accumulate(map(len, encoded))]),
    }
    if store_noise:
        tensors["noise"] = pairs.noise.contiguous()
    return tensors


def shard_content(
    manifest: Manifest,
    shard: int,
    tensors: dict[str, Tensor],
    truncated: int,
    made: list[dict[str, Any]] | None = None,
) -> bytes:
    """The bytes of a shard's file, which depend on the arguments alone.

    Args:
        made: how its batches were made, each way once; by default as the manifest says. It is written, with the batch
            size, unless it is unknown.
    """
    header = {"shard": shard, "truncated": truncated, "digest": tensors_digest(tensors)}
    if manifest.made():
        header |= {"batch_size": manifest.batch_size, "made": [manifest.made()] if made is None else made}
    header |= manifest.identity()
    return save(tensors, {HEADER: json.dumps(header)})


def read_shard(store: Store, manifest: Manifest, shard_number: int, compare: bool = False) -> Shard:
    """A shard, memory-mapped.

    Args:
        compare: compare its bytes with its digest, if it has one; 270 MB take a third of a second plus the disk's time.

    Raises:
        UserError: the shard is missing, damaged, or belongs to another set.
    """
    name, span = manifest.name(shard_number), manifest.span(shard_number)
    file = store.path(name)
    shard = open_shard(store, name, REMEDY)
    manifest.require_same(shard.header, file)
    seed, first = shard.tensors.get("seed"), manifest.seed_base + span.start
    if seed is None or not torch.equal(seed, torch.arange(first, first + len(span))):
        raise UserError(f"{file}: contains other pairs than its name says; delete it and {REMEDY}")
    if compare and shard.header.get("digest") not in (None, tensors_digest(shard.tensors)):
        raise UserError(f"{file}: shard is damaged (its bytes do not match its digest); delete it and {REMEDY}")
    return shard


def shards_size(store: Store, manifest: Manifest) -> int:
    """Bytes of the shards that the store holds."""
    entries = store.entries()
    names = (manifest.name(shard) for shard in range(manifest.shards))
    return sum(entries[name].size for name in names if name in entries)
