"""The tensors and metadata in a shard's file: packing pairs into them, and checking a shard that is read."""

import codecs
import json
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from diffgan.errors import UserError
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.headers import HEADER, header_fault
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.shard_reader import DamagedShard, Shard, open_shard
from diffgan.storage.store import Store
from diffgan.storage.tensor_files import described, first_not_finite, tensors_digest
from diffgan.storage.tensor_headers import Expected, tensors_fault

NOISE_HEAD = 4  # values of z in a shard
NOISE_TOLERANCE = 1e-5  # processors may differ in the last bit of a normal number, generators differ in all
DECODED_BYTES = 1 << 20  # of prompts at a time
REMEDY = "run `diffgan predict` with the configuration of this set again"


def batches_of(numbers: range, batch_size: int) -> list[range]:
    """Consecutive numbers in batches, the last of which may be smaller.

    The batches of a shard are the same in every run: which pairs are solved together decides how latents are rounded.
    """
    return [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]


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
        truncated: how many of its prompts the tokenizer truncated.
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

    Its metadata, seeds, and the names, shapes and dtypes of its tensors are always checked.

    Args:
        compare: also check all values: that they are finite, prompts UTF-8, and the bytes those of the digest, if the
            shard has one; 270 MB take half a second plus the disk's time.

    Raises:
        UserError: the shard is missing, belongs to another set, is damaged or contains other pairs.
    """
    name, span = manifest.name(shard_number), manifest.span(shard_number)
    shard = open_shard(store, name, REMEDY)
    manifest.require_same(shard.header, store.path(name))
    fault = header_fault(shard.header) or pairs_fault(manifest, len(span), shard.tensors)
    seeds = range(manifest.seed_base + span.start, manifest.seed_base + span.stop)
    if not fault and not torch.equal(shard.tensors["seed"], torch.arange(seeds.start, seeds.stop)):
        fault = "seeds of other pairs than its name says"
    if compare:
        fault = fault or values_fault(shard.tensors) or _digest_fault(shard)
    if fault:
        raise DamagedShard(f"{store.path(name)}: shard is damaged ({fault}); delete it and {REMEDY}")
    return shard


# ---- checks ----


def pairs_fault(manifest: Manifest, count: int, tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the names, shapes, dtypes and offsets of the tensors of `count` pairs; reads the offsets."""
    expected = {
        "latent": Expected((count, *manifest.latent_shape), ("float16",)),
        "seed": Expected((count,), ("int64",)),
        "noise_head": Expected((count, NOISE_HEAD), ("float32",)),
        "prompt_bytes": Expected((None,), ("uint8",)),
        "prompt_offsets": Expected((count + 1,), ("int64",)),
    }
    if manifest.store_noise:
        expected["noise"] = Expected((count, *manifest.latent_shape), ("float32",))
    if fault := tensors_fault(described(tensors), expected):
        return fault
    offsets, ends = tensors["prompt_offsets"], [0, len(tensors["prompt_bytes"])]
    if offsets[[0, -1]].tolist() != ends or (offsets[1:] < offsets[:-1]).any():
        return "prompt_offsets do not match the prompts"
    return None


def values_fault(tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the values of tensors in which `pairs_fault` has found nothing; reads all of them."""
    if (name := first_not_finite(tensors)) is not None:
        return f"{name} is not finite"
    if fault := _prompts_fault(tensors["prompt_bytes"].numpy(), tensors["prompt_offsets"].numpy()):
        return fault
    if "noise" in tensors:
        deviation = (tensors["noise"].flatten(1)[:, :NOISE_HEAD] - tensors["noise_head"]).abs().max()
        if deviation > NOISE_TOLERANCE:
            return "noise does not begin with noise_head"
    return None


def _prompts_fault(text: np.ndarray, offsets: np.ndarray) -> str | None:
    """What is wrong with prompts as bytes; decoded in blocks, as they may be long."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), DECODED_BYTES):
            decoder.decode(text[start : start + DECODED_BYTES].tobytes())
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return f"prompts are no UTF-8: {error.reason}"
    begins = offsets[offsets < len(text)]
    inside = (text[begins] & 0b1100_0000) == 0b1000_0000  # the second or a later byte of a character
    return "prompt_offsets cut a character" if inside.any() else None


def _digest_fault(shard: Shard) -> str | None:
    matches = shard.header.get("digest") in (None, tensors_digest(shard.tensors))
    return None if matches else "its bytes do not match its digest"


def shards_size(store: Store, manifest: Manifest) -> int:
    """Bytes of the shards that the store holds."""
    entries = store.entries()
    names = (manifest.name(shard) for shard in range(manifest.shards))
    return sum(entries[name].size for name in names if name in entries)
