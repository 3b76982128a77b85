"""Reading a complete pair set.

A pair set is `manifest.json` and `pairs-00000-of-00012.safetensors`, ...; pair i has seed `seed_base + i` and lies in
shard `i // shard_size`. A shard holds

    latent         (N, C, H, W) float16
    seed           (N,) int64
    noise_head     (N, 4) float32, the first values of z
    prompt_bytes   (B,) uint8, UTF-8;  prompt_offsets (N + 1,) int64
    noise          (N, C, H, W) float32, only with `store_noise`

and, in the safetensors header, the number of the shard, how many of its prompts the tokenizer truncated (`truncated`),
a `digest` of the tensors, how they were made (`batch_size`, and `made`: device, library versions and `compile` of its
batches, each way once; sets begun before version 0.3 lack both), and the fields that manifests of one set share.
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
    """A complete pair set, memory-mapped: `len` pairs, read by number.

    Shards are opened and checked when they are first read; those of a local set at once, if they are no more than may
    stay open. Bytes are compared with the shards' digests if the set is small (`COMPARED_BYTES`). Remote shards are
    copied to the cache.

    Args:
        folder: path or URL.
        cache_gb: limit of the copies kept of remote shards, in 10^9 bytes.

    Attributes:
        embeddings: where `read` finds the conditioning of the prompts; None (the default) if it is not to read that.

    Raises:
        UserError: the manifest or a shard is missing, damaged or belongs to another set.
    """

    def __init__(self, folder: str | Path, cache_gb: float = CACHE_GB):
        self.folder, self.store = str(folder), open_store(folder, cache_gb)
        self.manifest = Manifest.read(self.store)
        self.manifest.require_complete(self.store)
        self.embeddings: Embeddings | None = None
        self.shards = ShardReader(self.store, self.manifest.name, self._load, self.manifest.shard_size)
        local = isinstance(self.store, LocalStore)
        self._compare = local and shards_size(self.store, self.manifest) <= COMPARED_BYTES
        if local and self.manifest.shards <= self.shards.max_open:
            for shard in range(self.manifest.shards):
                self.shards[shard]

    def __len__(self) -> int:
        return self.manifest.pairs

    def read(self, numbers: Sequence[int]) -> PairBatch:
        """The pairs of these numbers (0 <= number < len), in this order.

        Raises:
            UserError: a shard is missing or damaged, or the noise drawn here is not the noise the set was made from.
        """
        fields = ["seed", "noise_head", "latent"]
        if self.manifest.store_noise:
            fields.append("noise")
        rows = dict(zip(fields, self.shards.gather(numbers, fields), strict=True))
        seed = rows["seed"]
        noise = rows["noise"] if "noise" in rows else draw_noise(seed, tuple(self.manifest.latent_shape))
        self._require_same_noise(seed, noise, rows["noise_head"])
        prompts = self.prompts(numbers)
        conditioning = self.embeddings and self.embeddings.read(prompts)
        return PairBatch(seed, noise, prompts, rows["latent"].float(), conditioning)

    def prompts(self, numbers: Sequence[int]) -> list[str]:
        """The prompts of the pairs of these numbers."""
        return [self._prompt(*divmod(int(number), self.manifest.shard_size)) for number in numbers]

    def _prompt(self, shard: int, row: int) -> str:
        tensors = self.shards[shard].tensors
        begin, end = tensors["prompt_offsets"].numpy()[row : row + 2]
        try:
            return tensors["prompt_bytes"].numpy()[begin:end].tobytes().decode()
        except UnicodeDecodeError as error:
            name = self.store.path(self.manifest.name(shard))
            raise UserError(f"{name}: a prompt is no UTF-8 ({error.reason}); run `diffgan pairs verify`") from error

    def _load(self, shard: int) -> Shard:
        return read_shard(self.store, self.manifest, shard, self._compare)

    def _require_same_noise(self, seed: Tensor, noise: Tensor, noise_head: Tensor) -> None:
        """Raises: UserError if the noise (N, C, H, W) does not begin with the set's (N, 4)."""
        deviation = (noise.flatten(1)[:, :NOISE_HEAD] - noise_head).abs().amax(1)
        if not (deviation <= NOISE_TOLERANCE).all():
            raise UserError(
                f"{self.folder}: seed {seed[deviation.argmax()].item()} draws other noise here than in the set "
                f"(torch {self.manifest.versions.get('torch')} there, {version('torch')} here); "
                "use that version, or make the set with `store_noise`"
            )
