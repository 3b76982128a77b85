"""The verb `pairs embed`: encode every prompt of a pair set once."""

import json
import sys
from collections.abc import Sequence

import torch
from safetensors.torch import save

from diffgan.embeddings import INDEX, index_tensors, shard_name, tensors_of
from diffgan.errors import UserError
from diffgan.pairs import PairSet, cut, weights_digest
from diffgan.shards import HEADER
from diffgan.store import Store, open_store
from diffgan.teacher import Teacher


def embed(folder: str, output: str, teacher: str | None = None, batch_size: int = 64) -> None:
    """Encode every prompt of a pair set once, for `LatentPairs` to read; the same command again goes on.

    Args:
        folder: of the pair set: a path or URL.
        output: folder of the embeddings: a path or URL.
        teacher: where the set's teacher is now; by default where the manifest says it was.
        batch_size: prompts encoded at once.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} must be at least 1")
    pairs, store = PairSet(folder), open_store(output)
    network = _load(teacher or pairs.manifest.teacher, pairs.manifest.teacher_digest)
    size = pairs.manifest.shard_size
    prompts = _unique_prompts(pairs)
    _open_index(store, prompts, {"teacher_digest": pairs.manifest.teacher_digest, "shard_size": size})
    spans, there = cut(range(len(prompts)), size), store.entries()
    for shard, span in enumerate(spans):
        if (name := shard_name(len(spans), shard)) not in there:
            store.write(name, _encoded(network, [prompts[i] for i in span], batch_size, shard))
    rows = f"{len(prompts)} prompts of {len(pairs)} pairs"
    used = sum(entry.size for name, entry in store.entries().items() if name != INDEX) / len(prompts)
    print(f"diffgan: {output}: {rows}, {used / 1000:.1f} kB each", file=sys.stderr)


def _load(teacher: str, digest: str) -> Teacher:
    network = Teacher.from_pretrained(teacher).to("cuda" if torch.cuda.is_available() else "cpu")
    if (found := weights_digest(network)) != digest:
        raise UserError(
            f"teacher {teacher}: not the teacher of this set (digest {digest} there, {found} here); name where it is: "
            "--teacher"
        )
    return network


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


def _encoded(teacher: Teacher, prompts: list[str], batch_size: int, shard: int) -> bytes:
    """The content of a shard's file."""
    parts = [tensors_of(teacher.encode([prompts[i] for i in span])) for span in cut(range(len(prompts)), batch_size)]
    tensors = {name: torch.cat([part[name].cpu() for part in parts]).contiguous() for name in parts[0]}
    return save(tensors, {HEADER: json.dumps({"shard": shard})})
