"""What a shard's file holds: writing it, reading it, checking it."""

import json
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from diffgan.errors import UserError
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.shard_reader import HEADER, Shard, open_shard
from diffgan.storage.atomic import write_atomic
from diffgan.storage.store import Store
from diffgan.storage.tensor_files import tensors_digest

NOISE_HEAD = 4
NOISE_TOLERANCE = 1e-5  # processors may differ in the last bit of a normal number, generators differ in all


def cut(span: range, batch_size: int) -> list[range]:
    """The batches of a shard, the same on every run: rounding depends on what is solved together."""
    return [span[i : i + batch_size] for i in range(0, len(span), batch_size)]


def write_shard(folder: Path, manifest: Manifest, shard: int, pairs: PairBatch, truncated: int = 0) -> None:
    """Write one whole shard, `truncated` of whose prompts were too long for the tokenizer.

    Raises:
        UserError: a latent is not finite in float16, or the file cannot be written.
    """
    file = manifest.file(folder, shard)
    write_atomic(file, shard_content(manifest, shard, pack(pairs, manifest.store_noise, str(file)), truncated))


def pack(pairs: PairBatch, store_noise: bool, file: str) -> dict[str, Tensor]:
    """The tensors of a shard, or of a part of one.

    Raises:
        UserError: a latent is not finite in float16; `file` is where it was to be written.
    """
    latent = pairs.latent.cpu().half()
    if not (finite := latent.isfinite().flatten(1).all(1)).all():
        seed = pairs.seed[~finite][0].item()
        raise UserError(f"{file}: the latent of seed {seed} is not finite; use another precision or teacher")
    words = [prompt.encode() for prompt in pairs.prompt]
    tensors = {
        "latent": latent.contiguous(),
        "seed": pairs.seed,
        "noise_head": pairs.noise.flatten(1)[:, :NOISE_HEAD].clone(memory_format=torch.contiguous_format),
        "prompt_bytes": torch.from_numpy(np.frombuffer(b"".join(words), dtype=np.uint8).copy()),
        "prompt_offsets": torch.tensor([0, *accumulate(map(len, words))]),
    }
    return tensors | ({"noise": pairs.noise.contiguous()} if store_noise else {})


def shard_content(manifest: Manifest, shard: int, tensors: dict[str, Tensor], truncated: int) -> bytes:
    """The bytes of a shard's file: a function of the manifest and of its tensors."""
    told = {"shard": shard, "truncated": truncated, "digest": tensors_digest(tensors)}
    return save(tensors, {HEADER: json.dumps(told | manifest.identity())})


def read_shard(store: Store, manifest: Manifest, shard: int, compare: bool = False) -> Shard:
    """A shard, memory-mapped.

    Args:
        compare: its bytes with its digest, if it has one; 270 MB take a third of a second, and the disk's time.

    Raises:
        UserError: the shard is missing, damaged, or of another set.
    """
    name, remedy = manifest.name(shard), "run `diffgan predict` with the configuration of this set again"
    found, span = open_shard(store, name, remedy), manifest.span(shard)
    manifest.require(found.header, store.path(name))
    seed, first = found.tensors.get("seed"), manifest.seed_base + span.start
    if seed is None or not torch.equal(seed, torch.arange(first, first + len(span))):
        raise UserError(f"{store.path(name)}: holds other pairs than its name says; delete it and {remedy}")
    if compare and found.header.get("digest") not in (None, tensors_digest(found.tensors)):
        fault = "its bytes are not those that were written"
        raise UserError(f"{store.path(name)}: shard is damaged ({fault}); delete it and {remedy}")
    return found


def shards_size(store: Store, manifest: Manifest) -> int:
    """Bytes of the shards that are there."""
    there = store.entries()
    return sum(there[name].size for name in map(manifest.name, range(manifest.shards)) if name in there)
