"""Noise-latent pairs of a teacher: the record, and the folder of shards they are kept in.

A pair set is `manifest.json` and `pairs-00000-of-00012.safetensors`, ...; pair i has seed `seed_base + i` and lies in
shard `i // shard_size`. A shard holds

    latent         (N, C, H, W) float16
    seed           (N,) int64
    noise_head     (N, 4) float32, the first values of z
    prompt_bytes   (B,) uint8, UTF-8;  prompt_offsets (N + 1,) int64
    noise          (N, C, H, W) float32, only with `store_noise`

and, in the safetensors header, the number of the shard, how many of its prompts the tokenizer cut (`truncated`), a
`digest` of the tensors, and what the manifest compares.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.pairs.embeddings import Embeddings
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.shard_reader import HEADER, Shard, Shards, open_shard
from diffgan.storage.atomic import write_whole
from diffgan.storage.cache import CACHE_GB
from diffgan.storage.store import Folder, Store, open_store
from diffgan.teachers.base import Teacher

NOISE_HEAD = 4
COMPARED_BYTES = 1e9  # local sets up to this size are compared with their digests when they are opened: a second
NOISE_TOLERANCE = 1e-5  # processors may differ in the last bit of a normal number, generators differ in all


class PairBatch(NamedTuple):
    """N pairs on the trajectories of a teacher.

    seed: (N,) int64.  noise: (N, C, H, W) float32, N(0, I), drawn from `seed`.  prompt: N str.
    latent: (N, C, H, W) float32, the teacher's solution from `noise` under `prompt`.
    conditioning: N rows that the teacher's text encoder made of `prompt`, where they were cached.
    """

    seed: Tensor
    noise: Tensor
    prompt: list[str]
    latent: Tensor
    conditioning: Conditioning | None = None


def weights_digest(teacher: Teacher) -> str:
    """Digest of a teacher's weights (denoiser and text encoders), vocabularies and `settings`.

    It depends on the values, not on files and names, so a moved or renamed copy is the same teacher. What else is in
    the configurations of the networks and tokenizers (attention_head_dim, hidden_act, ...) is not in it: two teachers
    that differ in that alone have one digest, though not the same latents. `diffgan pairs verify` sees that.
    """
    plain = [tokenizer.get_vocab() for tokenizer in teacher.tokenizers] + [teacher.settings] * bool(teacher.settings)
    digest = hashlib.blake2b("".join(json.dumps(part, sort_keys=True) for part in plain).encode(), digest_size=16)
    for network in (teacher.unet, *teacher.text_encoders):
        for _, tensor in sorted(network.state_dict().items()):
            digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def cut(span: range, batch_size: int) -> list[range]:
    """The batches of a shard, the same on every run: rounding depends on what is solved together."""
    return [span[i : i + batch_size] for i in range(0, len(span), batch_size)]


def require_teacher(manifest: Manifest, network: Teacher, place: str) -> None:
    """Raises UserError if the network loaded from `place` is not the one that made the set."""
    if (digest := weights_digest(network)) != manifest.teacher_digest:
        raise UserError(
            f"teacher {place}: not the teacher of this set (digest {manifest.teacher_digest} there, {digest} here); "
            "name where it is: --teacher"
        )


def write_shard(folder: Path, manifest: Manifest, shard: int, pairs: PairBatch, truncated: int = 0) -> None:
    """Write one whole shard, `truncated` of whose prompts were too long for the tokenizer.

    Raises:
        UserError: a latent is not finite in float16, or the file cannot be written.
    """
    file = manifest.file(folder, shard)
    write_whole(file, shard_content(manifest, shard, pack(pairs, manifest.store_noise, str(file)), truncated))


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


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Digest of tensors and their names: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


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


class PairSet:
    """A whole pair set, memory-mapped: `len` pairs, read by number.

    Shards are opened and checked when they are first read; those of this machine's disks at once, if they are no more
    than can stay open. Bytes are compared with the shards' digests if the set is small (`COMPARED_BYTES`). Remote
    shards are copied to the cache.

    Args:
        folder: path or URL.
        cache_gb: limit of the copies that are kept of remote shards, in 10^9 bytes.

    Attributes:
        embeddings: where `read` finds the conditioning of the prompts, if it is to read that too.

    Raises:
        UserError: the manifest or a shard is missing, damaged or of another set.
    """

    def __init__(self, folder: str | Path, cache_gb: float = CACHE_GB):
        self.folder, self.store = str(folder), open_store(folder, cache_gb)
        self.manifest = Manifest.read(self.store)
        self.manifest.require_whole(self.store)
        self.embeddings: Embeddings | None = None
        self.shards = Shards(self.store, self.manifest.name, self._load, self.manifest.shard_size)
        self._compare = isinstance(self.store, Folder) and shards_size(self.store, self.manifest) <= COMPARED_BYTES
        if isinstance(self.store, Folder) and self.manifest.shards <= self.shards.most:
            for shard in range(self.manifest.shards):
                self.shards[shard]

    def __len__(self) -> int:
        return self.manifest.pairs

    def read(self, numbers: Sequence[int]) -> PairBatch:
        """The pairs of these numbers (0 <= number < len), in this order.

        Raises:
            UserError: a shard is not as it should be, or the noise drawn here is not the noise the set was made from.
        """
        stored = ["noise"] if self.manifest.store_noise else []
        seed, head, latent, *noise = self.shards.gather(numbers, ["seed", "noise_head", "latent", *stored])
        noise = noise[0] if noise else draw_noise(seed, tuple(self.manifest.latent_shape))
        self._check_noise(seed, noise, head)
        prompts = self.prompts(numbers)
        conditioning = self.embeddings and self.embeddings.read(prompts)
        return PairBatch(seed, noise, prompts, latent.float(), conditioning)

    def prompts(self, numbers: Sequence[int]) -> list[str]:
        """The prompts of the pairs of these numbers."""
        return [self._prompt(*divmod(int(number), self.manifest.shard_size)) for number in numbers]

    def _prompt(self, shard: int, row: int) -> str:
        tensors = self.shards[shard].tensors
        begin, end = tensors["prompt_offsets"].numpy()[row : row + 2]
        return tensors["prompt_bytes"].numpy()[begin:end].tobytes().decode()

    def _load(self, shard: int) -> Shard:
        return read_shard(self.store, self.manifest, shard, self._compare)

    def _check_noise(self, seed: Tensor, noise: Tensor, head: Tensor) -> None:
        deviation = (noise.flatten(1)[:, :NOISE_HEAD] - head).abs().amax(1)
        if not (deviation <= NOISE_TOLERANCE).all():
            raise UserError(
                f"{self.folder}: seed {seed[deviation.argmax()].item()} draws other noise here than in the set "
                f"(torch {self.manifest.versions.get('torch')} there, {version('torch')} here); "
                "use that version, or make the set with `store_noise`"
            )
