"""The verb `pairs verify`: every byte of a set, and some of its pairs made again."""

from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.pairs.generation import PairGeneration, PromptBatch, simulate
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.opening import require_teacher
from diffgan.pairs.partial_shards import header_of
from diffgan.pairs.shard_format import NOISE_HEAD, NOISE_TOLERANCE, cut
from diffgan.storage.open import open_store
from diffgan.storage.store import Store
from diffgan.storage.tensor_files import tensors_digest
from diffgan.teachers.solvers import named_in

STORED = 2**-11  # of the largest latent: float16 on disk
COMPUTED = {"32": 2e-3, "64": 2e-3}  # a batch of other pairs sums in another order; by the bits of the precision
COMPUTED_IN_HALF = 0.2


class Sample(NamedTuple):
    """A pair of a set.

    shard: the name of its file.  seed: of z.  noise_head: (4,).  latent: (C, H, W) float16.  noise: (C, H, W) float32,
    if the set holds it.
    """

    shard: str
    seed: int
    noise_head: Tensor
    prompt: str
    latent: Tensor
    noise: Tensor | None


def verify(folder: str, sample: int = 64, teacher: str | None = None, tolerance: float | None = None) -> None:
    """Check a pair set: every shard's header, seeds, prompts, values and digest, and a sample of pairs made again.

    Args:
        folder: of the pair set: a path or URL.
        sample: pairs to be made again, chosen at random, the same ones every time; 0 makes none.
        teacher: where the set's teacher is now; by default where the manifest says it was.
        tolerance: largest deviation of a latent that is allowed; by default what storage and rounding explain.
    """
    if sample < 0:
        raise UserError(f"--sample: {sample} must be at least 0")
    if tolerance is not None and not tolerance >= 0:
        raise UserError(f"--tolerance: {tolerance} must be at least 0")
    store = open_store(folder)
    manifest = Manifest.read(store)
    chosen = set(np.random.default_rng(0).permutation(manifest.pairs)[:sample].tolist())
    samples, undigested = _check_shards(store, manifest, chosen)
    told = "headers, seeds, prompts, values" + ("" if undigested else ", digests")
    print(f"{folder}: {manifest.shards} shards, {manifest.pairs} pairs: {told} are right")
    if undigested:
        print(
            f"{folder}: {undigested} shards hold no digest (an older version made them): their bytes were not compared"
        )
    _check_noise(samples)
    if samples:
        print(f"{folder}: {_simulate_again(store, manifest, samples, teacher, tolerance)}")


# ---- what is on disk ----


def _check_shards(store: Store, manifest: Manifest, chosen: set[int]) -> tuple[list[Sample], int]:
    """The pairs of these numbers, and how many shards have no digest; UserError at the first shard that is wrong."""
    manifest.require_whole(store)
    samples, undigested = [], 0
    for shard in range(manifest.shards):
        name = store.path(manifest.name(shard))
        tensors, digested = _check_shard(store, manifest, shard, name)
        undigested += not digested
        rows = [row for row, number in enumerate(manifest.span(shard)) if number in chosen]
        samples += [_sample(name, tensors, row, manifest.store_noise) for row in rows]
    return samples, undigested


def _check_shard(store: Store, manifest: Manifest, shard: int, name: str) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a shard, and whether they were compared with a digest."""
    content = store.read(manifest.name(shard)) or b""
    try:
        header, tensors = header_of(content), load(content)
        manifest.require(header, name)
        fault = _fault(manifest, shard, tensors) or _changed(header, tensors)
    except UserError:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        fault = str(error)
    if fault:
        raise UserError(f"{name}: shard is damaged ({fault}); delete it and run `diffgan predict` again")
    return tensors, "digest" in header


def _fault(manifest: Manifest, shard: int, tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the tensors of a shard."""
    span, offsets = manifest.span(shard), tensors["prompt_offsets"]
    if fault := _fault_of_values(manifest, len(span), tensors):
        return fault
    if tensors["seed"].tolist() != [manifest.seed_base + i for i in span]:
        return "seeds of other pairs than its name says"
    ends = [0, len(tensors["prompt_bytes"])]
    if len(offsets) != len(span) + 1 or offsets[[0, -1]].tolist() != ends or (offsets.diff() < 0).any():
        return "prompt_offsets do not cut the prompts"
    tensors["prompt_bytes"].numpy().tobytes().decode()
    return None


def _fault_of_values(manifest: Manifest, count: int, tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the latents and noise of `count` pairs."""
    stored = {"noise": (count, *manifest.latent_shape)} if manifest.store_noise else {}
    wanted = {"latent": (count, *manifest.latent_shape), "noise_head": (count, NOISE_HEAD)} | stored
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            return f"{name} is {tuple(tensors[name].shape)} and not {shape}"
        if not tensors[name].isfinite().all():
            return f"{name} is not finite"
    if stored and (tensors["noise"].flatten(1)[:, :NOISE_HEAD] - tensors["noise_head"]).abs().max() > NOISE_TOLERANCE:
        return "noise does not begin with noise_head"
    return None


def _changed(header: dict, tensors: dict[str, Tensor]) -> str | None:
    changed = "digest" in header and header["digest"] != tensors_digest(tensors)
    return "its bytes are not those that were written" if changed else None


def _sample(name: str, tensors: dict[str, Tensor], row: int, store_noise: bool) -> Sample:
    begin, end = tensors["prompt_offsets"][row : row + 2].tolist()
    prompt = tensors["prompt_bytes"][begin:end].numpy().tobytes().decode()
    noise = tensors["noise"][row].clone() if store_noise else None  # a clone, for the shard is let go
    head, latent = tensors["noise_head"][row].clone(), tensors["latent"][row].clone()
    return Sample(name, tensors["seed"][row].item(), head, prompt, latent, noise)


def _check_noise(samples: list[Sample]) -> None:
    """Raises: UserError if the noise of a pair must be drawn, and is another one here."""
    for sample in (sample for sample in samples if sample.noise is None):
        head = draw_noise([sample.seed], tuple(sample.latent.shape)).flatten()[:NOISE_HEAD]
        if not (head - sample.noise_head).abs().max() <= NOISE_TOLERANCE:
            raise UserError(f"{sample.shard}: seed {sample.seed} draws other noise here than the set was made from")


# ---- what the teacher says ----


def _simulate_again(
    store: Store, manifest: Manifest, samples: list[Sample], teacher: str | None, tolerance: float | None
) -> str:
    """What came of it, in words; UserError if a deviation is larger than allowed."""
    deviations = _deviations(manifest, samples, teacher or manifest.teacher)
    worst = int(deviations.argmax())
    largest = max(sample.latent.abs().max().item() for sample in samples)
    allowed = allowed_deviation(manifest.precision, largest) if tolerance is None else tolerance
    told = f"{deviations[worst]:.2g} of latents up to {largest:.2g}, allowed {allowed:.2g}"
    if not deviations[worst] <= allowed:
        shard, seed = samples[worst].shard, samples[worst].seed
        compiled = " (made by a compiled network, which rounds otherwise: --tolerance)" if manifest.compile else ""
        raise UserError(
            f"{shard}: made again, seed {seed} deviates by {told}{compiled}; delete it and run `diffgan predict` again"
        )
    return f"{len(samples)} pairs made again deviate by at most {told}"


def allowed_deviation(precision: str, largest: float) -> float:
    """What storage and rounding explain, for latents of at most `largest` made in Lightning's `precision`."""
    return STORED * largest + COMPUTED.get(precision.split("-")[0], COMPUTED_IN_HALF)


def _deviations(manifest: Manifest, samples: list[Sample], teacher: str) -> Tensor:
    """(N,): of each pair's latent, its largest deviation."""
    module = _Again(teacher, manifest.steps, manifest.guidance, named_in(manifest.scheduler))
    module.stored = {sample.seed: sample.noise for sample in samples if sample.noise is not None}
    module.setup("predict")
    require_teacher(manifest, module.teacher, teacher)
    batches = [
        PromptBatch(torch.tensor([samples[i].seed for i in numbers]), [samples[i].prompt for i in numbers])
        for numbers in cut(range(len(samples)), manifest.batch_size)
    ]
    made = torch.cat([pairs.latent.cpu() for pairs in simulate(module, batches, manifest.precision)])
    return (made - torch.stack([sample.latent.float() for sample in samples])).abs().flatten(1).amax(1)


class _Again(PairGeneration):
    """Solves from stored noise if there is any; in the batch, it would be rounded to the trainer's precision."""

    stored: dict[int, Tensor]

    def noise(self, seed: Tensor) -> Tensor:
        return torch.stack([self.stored[s] for s in seed.tolist()]) if self.stored else super().noise(seed)
