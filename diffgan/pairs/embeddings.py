"""Text conditioning of the prompts of a pair set, cached: one row for each unique prompt, memory-mapped.

A folder holds `index.safetensors` and `embeddings-00000-of-00012.safetensors`, ... The index is

    key    (U,) int64, the digests of the prompts, ascending
    row    (U,) int64, which row is whose

and, in its header, the teacher's digest and the rows a shard; rows are in the order in which the pair set has the
prompts, so that pairs read together find theirs together. A shard holds the fields of `Conditioning`, (N, ...) each,
and, in its header, its number, the teacher's digest and a digest of its prompts in their order.
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
from diffgan.pairs.shard_reader import DamagedShard, Shard, ShardReader, open_shard
from diffgan.storage.cache import CACHE_GB
from diffgan.storage.open import open_store
from diffgan.storage.store import Store

INDEX = "index.safetensors"
REMEDY = "run `diffgan pairs embed` again"


def shard_name(shards: int, shard: int) -> str:
    """The file of a shard."""
    return f"embeddings-{shard:05d}-of-{shards:05d}.safetensors"


def keys(prompts: Sequence[str]) -> np.ndarray:
    """(N,) int64: digests of prompts."""
    digests = (hashlib.blake2b(prompt.encode(), digest_size=8).digest() for prompt in prompts)
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def shard_header(shard: int, teacher_digest: str, keys: np.ndarray) -> dict[str, Any]:
    """What a shard tells of itself.

    Args:
        keys: (N,) int64, the digests of its prompts.
    """
    digest = hashlib.blake2b(keys.astype("<i8").tobytes(), digest_size=16).hexdigest()
    return {"shard": shard, "teacher_digest": teacher_digest, "prompts_digest": digest}


def open_embeddings(store: Store, name: str, header: dict[str, Any]) -> Shard:
    """A shard, memory-mapped, that is to have this header.

    Raises:
        UserError: the shard is missing; DamagedShard: it is damaged, holds other prompts or is another teacher's.
    """
    found = open_shard(store, name, REMEDY)
    if found.header != header:
        raise DamagedShard(f"{store.path(name)}: holds other prompts or is another teacher's; {REMEDY}")
    return found


class Embeddings:
    """The cached conditioning of prompts.

    Args:
        folder: path or URL.
        teacher_digest: of the teacher whose text encoder it must be.
        cache_gb: limit of the copies kept of remote shards, in 10^9 bytes.

    Raises:
        UserError: there are no embeddings, or they are another teacher's.
    """

    def __init__(self, folder: str | Path, teacher_digest: str, cache_gb: float = CACHE_GB):
        self.store = open_store(folder, cache_gb)
        index = open_shard(self.store, INDEX, REMEDY)
        if index.header["teacher_digest"] != teacher_digest:
            raise UserError(
                f"{self.store.place}: the embeddings are of another teacher (digest {index.header['teacher_digest']} "
                f"there, {teacher_digest} of the pairs); {REMEDY} on these pairs"
            )
        self.keys, self.rows = index.tensors["key"].numpy(), index.tensors["row"].numpy()
        self.teacher_digest, self.ordered = teacher_digest, np.empty_like(self.keys)  # the keys by row
        self.ordered[self.rows] = self.keys
        shards = -(-len(self.keys) // index.header["shard_size"])
        self.shards = ShardReader(self.store, partial(shard_name, shards), self._load, index.header["shard_size"])

    def read(self, prompts: Sequence[str]) -> Conditioning:
        """(N, ...) the rows of these prompts.

        Raises:
            UserError: a prompt has none, or a shard is missing, damaged, another teacher's or of other prompts.
        """
        wanted = keys(prompts)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        if (missing := self.keys[places] != wanted).any():
            prompt = prompts[int(missing.argmax())]
            raise UserError(f"{self.store.place}: no embedding of the prompt {prompt!r}; {REMEDY} on these pairs")
        rows = self.rows[places]
        names = list(self.shards[int(rows[0]) // self.shards.rows].tensors)
        return Conditioning(**dict(zip(names, self.shards.gather(rows, names), strict=True)))

    def _load(self, shard: int) -> Shard:
        own = self.ordered[shard * self.shards.rows : (shard + 1) * self.shards.rows]
        return open_embeddings(self.store, self.shards.name(shard), shard_header(shard, self.teacher_digest, own))


def tensors_of(conditioning: Conditioning) -> dict[str, Tensor]:
    """The fields that a teacher has, by name."""
    return {name: tensor for name, tensor in conditioning._asdict().items() if tensor is not None}


def index_tensors(prompts: Sequence[str]) -> dict[str, Tensor]:
    """The index of unique prompts, row i being prompt i's.

    Raises:
        UserError: two prompts have one digest (of 2^64).
    """
    found = keys(prompts)
    order = np.argsort(found)
    if (same := np.diff(found[order]) == 0).any():
        twins = order[int(same.argmax()) :][:2]
        raise UserError(f"prompts {[prompts[i] for i in twins]}: have one digest; leave one of them out of the set")
    return {"key": torch.from_numpy(found[order]), "row": torch.from_numpy(order.astype(np.int64))}
