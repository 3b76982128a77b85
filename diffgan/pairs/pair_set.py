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

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.embeddings import Embeddings
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.shard_format import NOISE_HEAD, NOISE_TOLERANCE, read_shard, shards_size
from diffgan.pairs.shard_reader import Shard, ShardReader
from diffgan.storage.cache import CACHE_GB
from diffgan.storage.local import LocalStore
from diffgan.storage.open import open_store

COMPARED_BYTES = 1e9  # local sets up to this size are compared with their digests when they are opened: a second


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
        self.shards = ShardReader(self.store, self.manifest.name, self._load, self.manifest.shard_size)
        self._compare = isinstance(self.store, LocalStore) and shards_size(self.store, self.manifest) <= COMPARED_BYTES
        if isinstance(self.store, LocalStore) and self.manifest.shards <= self.shards.most:
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
