"""The verb `pairs embed`: encode every prompt of a pair set once."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save

from diffgan.errors import UserError
from diffgan.pairs.embeddings import INDEX, index_tensors, keys, open_embeddings, shard_header, shard_name, tensors_of
from diffgan.pairs.opening import require_teacher
from diffgan.pairs.pair_set import PairSet
from diffgan.pairs.shard_format import cut
from diffgan.pairs.shard_reader import HEADER, DamagedShard
from diffgan.storage.open import open_store
from diffgan.storage.store import Store
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import load_teacher


def embed(folder: str, output: str, teacher: str | None = None, batch_size: int = 64) -> None:
    """Encode every prompt of a pair set once, for `LatentPairs` to read; the same command again goes on.

    Shards that are there already and hold these prompts are kept; others of their names are made again.

    Args:
        folder: of the pair set: a path or URL.
        output: folder of the embeddings: a path or URL.
        teacher: where the set's teacher is now; by default where the manifest says it was.
        batch_size: prompts encoded at once.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} must be at least 1")
    pairs, store = PairSet(folder), open_store(output)
    teacher = teacher or pairs.manifest.teacher
    network = load_teacher(teacher).to("cuda" if torch.cuda.is_available() else "cpu")
    require_teacher(pairs.manifest, network, teacher)
    size, digest = pairs.manifest.shard_size, pairs.manifest.teacher_digest
    prompts = _unique_prompts(pairs)
    _open_index(store, prompts, {"teacher_digest": digest, "shard_size": size})
    spans, there = cut(range(len(prompts)), size), store.entries()
    names = [shard_name(len(spans), shard) for shard in range(len(spans))]
    for shard, (name, span) in enumerate(zip(names, spans, strict=True)):
        own = [prompts[i] for i in span]
        header = shard_header(shard, digest, keys(own))
        if name not in there or not _is_held(store, name, header):
            store.write(name, _encoded(network, own, batch_size, header))
    rows = f"{len(prompts)} prompts of {len(pairs)} pairs"
    used = sum(entry.size for name, entry in store.entries().items() if name in names) / len(prompts)
    print(f"diffgan: {output}: {rows}, {used / 1000:.1f} kB each", file=sys.stderr)


def _unique_prompts(pairs: PairSet) -> list[str]:
    """In the order in which the set has them first."""
    spans = (pairs.manifest.span(shard) for shard in range(pairs.manifest.shards))
    return list(dict.fromkeys(prompt for span in spans for prompt in pairs.prompts(span)))


def _open_index(store: Store, prompts: Sequence[str], told: dict) -> None:
    """Write the index, or see that the one there is this one.

    Raises:
        UserError: the folder holds other embeddings.
    """
    content = save(index_tensors(prompts), {HEADER: json.dumps(told)})
    if not store.create(INDEX, content) and store.read(INDEX) != content:
        raise UserError(f"{store.path(INDEX)}: embeddings of other prompts or another teacher; choose another folder")


def _is_held(store: Store, name: str, header: dict[str, Any]) -> bool:
    """Whether the shard of this name is whole and has this header; if not, the user is told."""
    try:
        open_embeddings(store, name, header)
    except DamagedShard as error:
        print(f"diffgan: {str(error).rpartition(';')[0]}; it is made again", file=sys.stderr)
        return False
    return True


def _encoded(teacher: Teacher, prompts: list[str], batch_size: int, header: dict[str, Any]) -> bytes:
    """The content of a shard's file."""
    parts = [tensors_of(teacher.encode([prompts[i] for i in span])) for span in cut(range(len(prompts)), batch_size)]
    tensors = {name: torch.cat([part[name].cpu() for part in parts]).contiguous() for name in parts[0]}
    return save(tensors, {HEADER: json.dumps(header)})
