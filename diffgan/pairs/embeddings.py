"""Cached text conditioning of the prompts of a pair set: one row per unique prompt, memory-mapped.

A folder holds `index.safetensors` and `embeddings-00000-of-00012.safetensors`, ... The index holds

    key    (U,) int64, the digests of the prompts, ascending
    row    (U,) int64, the row of each

and, in its header, the teacher's digest and the number of rows per shard. Rows are in the order in which the pair set
has the prompts, so that pairs that are read together find theirs together. A shard holds the fields of `Conditioning`,
(N, ...) each, and, in its header, its number, the teacher's digest and a digest of its prompts in their order.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.pairs.manifest import MAXIMUM
from diffgan.pairs.shard_reader import DamagedShard, Shard, ShardReader, open_shard
from diffgan.storage.cache import CACHE_GB
from diffgan.storage.open import open_store
from diffgan.storage.store import Store
from diffgan.storage.tensor_files import described
from diffgan.storage.tensor_headers import FLOATS, Expected, tensors_fault

ROWS = (*FLOATS, "int64", "bool")  # dtypes of conditioning: embeddings and guidance, sizes, mask
INDEX = "index.safetensors"
REMEDY = "run `diffgan pairs embed` again"


def shard_name(shards: int, shard: int) -> str:
    """File name of a shard, of `shards` in all."""
    return f"embeddings-{shard:05d}-of-{shards:05d}.safetensors"


def prompt_keys(prompts: Sequence[str]) -> np.ndarray:
    """(N,) int64: digests of prompts."""
    digests = (hashlib.blake2b(prompt.encode(), digest_size=8).digest() for prompt in prompts)
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def shard_header(shard: int, teacher_digest: str, keys: np.ndarray) -> dict[str, Any]:
    """The metadata of a shard.

    Args:
        keys: (N,) int64, the digests of its prompts.
    """
    digest = hashlib.blake2b(keys.astype("<i8").tobytes(), digest_size=16).hexdigest()
    return {"shard": shard, "teacher_digest": teacher_digest, "prompts_digest": digest}


def open_embeddings(store: Store, name: str, header: dict[str, Any], count: int) -> Shard:
    """A shard of `count` prompts, memory-mapped, whose metadata must be `header`.

    Raises:
        UserError: the shard is missing.
        DamagedShard: it is damaged, or contains other prompts or the embeddings of another teacher.
    """
    shard = open_shard(store, name, REMEDY)
    if shard.header != header:
        raise DamagedShard(f"{store.path(name)}: belongs to other prompts or another teacher; {REMEDY}")
    if fault := _rows_fault(shard.tensors, count):
        raise DamagedShard(f"{store.path(name)}: shard is damaged ({fault}); {REMEDY}")
    return shard


def _rows_fault(tensors: dict[str, Tensor], count: int) -> str | None:
    """What is wrong with the tensors of `count` prompts: names, number of rows or dtypes."""
    sides = {name: len(tensor.shape) - 1 for name, tensor in tensors.items()}
    known = [name for name in Conditioning._fields if name in tensors or name == "text"]
    return tensors_fault(
        described(tensors), {name: Expected((count, *[None] * sides.get(name, 0)), ROWS) for name in known}
    )


def _index_fault(index: Shard) -> str | None:
    """What is wrong with an index; reads it."""
    count, shard_size = len(index.tensors.get("key", ())), index.header.get("shard_size")
    if type(shard_size) is not int or not 1 <= shard_size <= MAXIMUM["shard_size"]:
        return f"shard_size is {shard_size!r} in its header and must be between 1 and {MAXIMUM['shard_size']}"
    if fault := tensors_fault(described(index.tensors), dict.fromkeys(("key", "row"), Expected((count,), ("int64",)))):
        return fault
    if not torch.equal(index.tensors["row"].sort().values, torch.arange(count)):
        return "row is no permutation"
    return None if count and (index.tensors["key"].diff() > 0).all() else "its keys are not ascending"


class Embeddings:
    """The cached conditioning of prompts.

    Args:
        folder: path or URL.
        teacher_digest: of the teacher whose text encoder must have made them.
        cache_gb: limit of the copies kept of remote shards, in 10^9 bytes.

    Raises:
        UserError: there are no embeddings, or they belong to another teacher.
    """

    def __init__(self, folder: str | Path, teacher_digest: str, cache_gb: float = CACHE_GB):
        self.store, self.teacher_digest = open_store(folder, cache_gb), teacher_digest
        index = open_shard(self.store, INDEX, REMEDY)
        if (theirs := index.header.get("teacher_digest")) != teacher_digest:
            raise UserError(
                f"{self.store.place}: the embeddings are of another teacher (digest {theirs} there, "
                f"{teacher_digest} of the pairs); {REMEDY} on these pairs"
            )
        if fault := _index_fault(index):
            raise DamagedShard(f"{self.store.path(INDEX)}: is damaged ({fault}); {REMEDY}")
        self.keys, self.rows = index.tensors["key"].numpy(), index.tensors["row"].numpy()
        self.keys_by_row = np.empty_like(self.keys)
        self.keys_by_row[self.rows] = self.keys
        shard_size = index.header["shard_size"]
        shards = -(-len(self.keys) // shard_size)
        self.shards = ShardReader(self.store, partial(shard_name, shards), self._load, shard_size)

    def read(self, prompts: Sequence[str]) -> Conditioning:
        """(N, ...): the rows of N prompts, in this order.

        Raises:
            UserError: a prompt has none, or a shard is missing, is damaged, or belongs to other prompts or another
                teacher.
        """
        wanted = prompt_keys(prompts)
        positions = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        missing = self.keys[positions] != wanted
        if missing.any():
            prompt = prompts[int(missing.argmax())]
            raise UserError(f"{self.store.place}: no embedding of the prompt {prompt!r}; {REMEDY} on these pairs")
        rows = self.rows[positions]
        first_shard = self.shards[int(rows[0]) // self.shards.rows]
        fields = list(first_shard.tensors)
        return Conditioning(**dict(zip(fields, self.shards.gather(rows, fields), strict=True)))

    def _load(self, shard: int) -> Shard:
        keys = self.keys_by_row[shard * self.shards.rows : (shard + 1) * self.shards.rows]
        return open_embeddings(
            self.store, self.shards.name(shard), shard_header(shard, self.teacher_digest, keys), len(keys)
        )


def conditioning_tensors(conditioning: Conditioning) -> dict[str, Tensor]:
    """The fields that the teacher uses, by name."""
    return {name: tensor for name, tensor in conditioning._asdict().items() if tensor is not None}


def index_tensors(prompts: Sequence[str]) -> dict[str, Tensor]:
    """The index of unique prompts, of which prompt i has row i.

    Raises:
        UserError: two prompts have the same digest (of 2^64).
    """
    keys = prompt_keys(prompts)
    order = np.argsort(keys)
    equal = np.diff(keys[order]) == 0
    if equal.any():
        first = int(equal.argmax())
        pair = [prompts[row] for row in order[first : first + 2]]
        raise UserError(f"prompts {pair}: have the same digest; remove one of them from the set")
    return {"key": torch.from_numpy(keys[order]), "row": torch.from_numpy(order.astype(np.int64))}
