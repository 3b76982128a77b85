"""The verb `pairs embed`: encode every prompt of a pair set once."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from diffgan.errors import UserError
from diffgan.pairs.embeddings import (
    INDEX,
    conditioning_tensors,
    index_tensors,
    open_embeddings,
    prompt_keys,
    shard_header,
    shard_name,
)
from diffgan.pairs.headers import HEADER
from diffgan.pairs.opening import require_teacher, teacher_of
from diffgan.pairs.pair_set import PairSet
from diffgan.pairs.shard_format import batches_of
from diffgan.pairs.shard_reader import DamagedShard
from diffgan.storage.open import open_store
from diffgan.storage.store import Store
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import load_teacher


def embed(folder: str, output: str, teacher: str | None = None, batch_size: int = 64) -> None:
    """Encode every prompt of a pair set once, for `LatentPairs` to read; the same command again resumes.

    Existing shards of these prompts are kept; damaged ones and those of other prompts are made again.

    Args:
        folder: of the pair set: a path or URL.
        output: folder of the embeddings: a path or URL.
        teacher: the set's teacher; by default the one in the manifest, if that is a directory here or "glyphs".
        batch_size: prompts encoded at once.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} must be at least 1")
    pairs, store = PairSet(folder), open_store(output)
    network = _load_teacher(pairs, teacher_of(pairs.manifest, teacher, folder))
    prompts = _unique_prompts(pairs)
    shard_size, digest = pairs.manifest.shard_size, pairs.manifest.teacher_digest
    _create_index(store, prompts, {"teacher_digest": digest, "shard_size": shard_size})
    shards, existing = batches_of(range(len(prompts)), shard_size), store.entries()
    for shard, rows in enumerate(shards):
        name, own_prompts = shard_name(len(shards), shard), prompts[rows.start : rows.stop]
        header = shard_header(shard, digest, prompt_keys(own_prompts))
        if name not in existing or not _is_intact(store, name, header, len(own_prompts)):
            store.write(name, _encode(network, own_prompts, batch_size, header))
    names = {shard_name(len(shards), shard) for shard in range(len(shards))}
    size = sum(entry.size for name, entry in store.entries().items() if name in names)
    counts = f"{len(prompts)} prompts of {len(pairs)} pairs"
    print(f"diffgan: {output}: {counts}, {size / len(prompts) / 1000:.1f} kB each", file=sys.stderr)


def _load_teacher(pairs: PairSet, path: str) -> Teacher:
    """Raises: UserError if it cannot be loaded, or is not the teacher of the set."""
    teacher = load_teacher(path, size=pairs.manifest.image_size).to("cuda" if torch.cuda.is_available() else "cpu")
    require_teacher(pairs.manifest, teacher, path)
    return teacher


def _unique_prompts(pairs: PairSet) -> list[str]:
    """The prompts of the set, each once, in the order in which it has them first."""
    prompts: dict[str, None] = {}
    for shard in range(pairs.manifest.shards):
        prompts |= dict.fromkeys(pairs.prompts(pairs.manifest.span(shard)))
    return list(prompts)


def _create_index(store: Store, prompts: Sequence[str], header: dict[str, Any]) -> None:
    """Write the index, or check that the existing one is the same.

    Raises:
        UserError: the folder holds other embeddings.
    """
    content = save(index_tensors(prompts), {HEADER: json.dumps(header)})
    if not store.create(INDEX, content) and store.read(INDEX) != content:
        raise UserError(f"{store.path(INDEX)}: embeddings of other prompts or another teacher; choose another folder")


def _is_intact(store: Store, name: str, header: dict[str, Any], count: int) -> bool:
    """Whether a shard is intact and has this header; if not, that is reported."""
    try:
        open_embeddings(store, name, header, count)
    except DamagedShard as error:
        fault = str(error).rpartition(";")[0]
        print(f"diffgan: {fault}; it is made again", file=sys.stderr)
        return False
    return True


def _encode(teacher: Teacher, prompts: list[str], batch_size: int, header: dict[str, Any]) -> bytes:
    """The bytes of a shard's file."""
    encoded: dict[str, list[Tensor]] = {}
    for rows in batches_of(range(len(prompts)), batch_size):
        conditioning = teacher.encode(prompts[rows.start : rows.stop])
        for name, tensor in conditioning_tensors(conditioning).items():
            encoded.setdefault(name, []).append(tensor.cpu())
    tensors = {name: torch.cat(batches).contiguous() for name, batches in encoded.items()}
    return save(tensors, {HEADER: json.dumps(header)})
