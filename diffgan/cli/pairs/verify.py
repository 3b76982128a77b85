"""The verb `pairs verify`: check every byte of a pair set, and make a sample of its pairs again."""

from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.pairs.generation import PairGeneration, PromptBatch, generate_pairs
from diffgan.pairs.headers import parse_header
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.opening import require_teacher
from diffgan.pairs.shard_format import NOISE_HEAD, NOISE_TOLERANCE, batches_of
from diffgan.storage.open import open_store
from diffgan.storage.store import Store
from diffgan.storage.tensor_files import tensors_digest
from diffgan.teachers.solvers import named_in

# How far a latent that is made again may deviate.
STORAGE = 2**-11  # of the largest latent: float16 on disk
ROUNDING = {"32": 2e-3, "64": 2e-3}  # by the bits of the precision: a batch of other pairs sums in another order
ROUNDING_IN_HALF = 0.2


class Sample(NamedTuple):
    """A pair of a set.

    file: of its shard.  seed: of z.  noise_head: (4,).  latent: (C, H, W) float16.  noise: (C, H, W) float32, if the
    set stores it.
    """

    file: str
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
        teacher: path of the set's teacher; by default the one in the manifest.
        tolerance: largest allowed deviation of a latent; by default what storage and rounding explain.
    """
    if sample < 0:
        raise UserError(f"--sample: {sample} must be at least 0")
    if tolerance is not None and not tolerance >= 0:
        raise UserError(f"--tolerance: {tolerance} must be at least 0")
    store = open_store(folder)
    manifest = Manifest.read(store)
    chosen = set(np.random.default_rng(0).permutation(manifest.pairs)[:sample].tolist())
    samples, undigested = _check_shards(store, manifest, chosen)
    checked = "headers, seeds, prompts, values" + ("" if undigested else ", digests")
    print(f"{folder}: {manifest.shards} shards, {manifest.pairs} pairs: {checked} are right")
    if undigested:
        print(f"{folder}: {undigested} shards of an older version have no digest: their bytes were not compared")
    _check_noise(samples)
    if samples:
        print(f"{folder}: {_make_again(manifest, samples, teacher, tolerance)}")


# ---- files ----


def _check_shards(store: Store, manifest: Manifest, chosen: set[int]) -> tuple[list[Sample], int]:
    """The pairs of the chosen numbers, and how many shards have no digest.

    Raises:
        UserError: names the first shard that is missing or damaged.
    """
    manifest.require_complete(store)
    samples, undigested = [], 0
    for shard in range(manifest.shards):
        file = store.path(manifest.name(shard))
        tensors, has_digest = _check_shard(store, manifest, shard, file)
        undigested += not has_digest
        rows = [row for row, number in enumerate(manifest.span(shard)) if number in chosen]
        samples += [_sample(file, tensors, row, manifest.store_noise) for row in rows]
    return samples, undigested


def _check_shard(store: Store, manifest: Manifest, shard: int, file: str) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a shard, and whether it has a digest.

    Raises:
        UserError: the shard is damaged or belongs to another set.
    """
    content = store.read(manifest.name(shard)) or b""
    try:
        header, tensors = parse_header(content), load(content)
        manifest.require_same(header, file)
        fault = _fault(manifest, shard, tensors) or _digest_fault(header, tensors)
    except UserError:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        fault = str(error)
    if fault:
        raise UserError(f"{file}: shard is damaged ({fault}); delete it and run `diffgan predict` again")
    return tensors, "digest" in header


def _fault(manifest: Manifest, shard: int, tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the tensors of a shard; KeyError or ValueError if one is missing or is not UTF-8."""
    span, offsets = manifest.span(shard), tensors["prompt_offsets"]
    if fault := _value_fault(manifest, len(span), tensors):
        return fault
    if tensors["seed"].tolist() != [manifest.seed_base + number for number in span]:
        return "seeds of other pairs than its name says"
    ends = [0, len(tensors["prompt_bytes"])]
    if len(offsets) != len(span) + 1 or offsets[[0, -1]].tolist() != ends or (offsets.diff() < 0).any():
        return "prompt_offsets do not match the prompts"
    tensors["prompt_bytes"].numpy().tobytes().decode()
    return None


def _value_fault(manifest: Manifest, count: int, tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the latents and noise of `count` pairs."""
    shapes = {"latent": (count, *manifest.latent_shape), "noise_head": (count, NOISE_HEAD)}
    if manifest.store_noise:
        shapes["noise"] = (count, *manifest.latent_shape)
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            return f"{name} is {tuple(tensors[name].shape)} and not {shape}"
        if not tensors[name].isfinite().all():
            return f"{name} is not finite"
    if manifest.store_noise:
        deviation = (tensors["noise"].flatten(1)[:, :NOISE_HEAD] - tensors["noise_head"]).abs().max()
        if deviation > NOISE_TOLERANCE:
            return "noise does not begin with noise_head"
    return None


def _digest_fault(header: dict, tensors: dict[str, Tensor]) -> str | None:
    if "digest" in header and header["digest"] != tensors_digest(tensors):
        return "its bytes do not match its digest"
    return None


def _sample(file: str, tensors: dict[str, Tensor], row: int, store_noise: bool) -> Sample:
    begin, end = tensors["prompt_offsets"][row : row + 2].tolist()
    prompt = tensors["prompt_bytes"][begin:end].numpy().tobytes().decode()
    noise = tensors["noise"][row].clone() if store_noise else None  # cloned, so that the shard can be freed
    noise_head, latent = tensors["noise_head"][row].clone(), tensors["latent"][row].clone()
    return Sample(file, tensors["seed"][row].item(), noise_head, prompt, latent, noise)


def _check_noise(samples: list[Sample]) -> None:
    """Raises: UserError if noise that is not stored is drawn differently here."""
    for sample in samples:
        if sample.noise is not None:
            continue
        noise_head = draw_noise([sample.seed], tuple(sample.latent.shape)).flatten()[:NOISE_HEAD]
        if not (noise_head - sample.noise_head).abs().max() <= NOISE_TOLERANCE:
            raise UserError(f"{sample.file}: seed {sample.seed} draws other noise here than the set was made from")


# ---- the teacher ----


def _make_again(manifest: Manifest, samples: list[Sample], teacher: str | None, tolerance: float | None) -> str:
    """How far the latents deviate, in words.

    Raises:
        UserError: a latent deviates by more than is allowed.
    """
    deviations = _deviations(manifest, samples, teacher or manifest.teacher)
    worst = int(deviations.argmax())
    largest = max(sample.latent.abs().max().item() for sample in samples)
    allowed = allowed_deviation(manifest.precision, largest) if tolerance is None else tolerance
    comparison = f"{deviations[worst]:.2g} of latents up to {largest:.2g}, allowed {allowed:.2g}"
    if not deviations[worst] <= allowed:
        file, seed = samples[worst].file, samples[worst].seed
        compiled = " (made by a compiled network, which rounds differently: --tolerance)" if manifest.compile else ""
        raise UserError(
            f"{file}: made again, seed {seed} deviates by {comparison}{compiled}; delete it and run `diffgan predict` "
            "again"
        )
    return f"{len(samples)} pairs made again deviate by at most {comparison}"


def allowed_deviation(precision: str, largest: float) -> float:
    """What storage and rounding explain, for latents of at most `largest` made in Lightning's `precision`."""
    return STORAGE * largest + ROUNDING.get(precision.split("-")[0], ROUNDING_IN_HALF)


def _deviations(manifest: Manifest, samples: list[Sample], teacher: str) -> Tensor:
    """(N,): the largest deviation of each pair's latent."""
    module = _StoredNoiseGeneration(teacher, manifest.steps, manifest.guidance, named_in(manifest.scheduler))
    module.stored = {sample.seed: sample.noise for sample in samples if sample.noise is not None}
    module.setup("predict")
    require_teacher(manifest, module.teacher, teacher)
    batches = []
    for numbers in batches_of(range(len(samples)), manifest.batch_size):
        batch = samples[numbers.start : numbers.stop]
        seed = torch.tensor([sample.seed for sample in batch])
        batches.append(PromptBatch(seed, [sample.prompt for sample in batch]))
    pairs = generate_pairs(module, batches, manifest.precision)
    made_again = torch.cat([batch.latent.cpu() for batch in pairs])
    stored = torch.stack([sample.latent.float() for sample in samples])
    return (made_again - stored).abs().flatten(1).amax(1)


class _StoredNoiseGeneration(PairGeneration):
    """Solves from stored noise if there is any; in the batch it would be rounded to the trainer's precision."""

    stored: dict[int, Tensor]  # seed -> (C, H, W)

    def noise(self, seed: Tensor) -> Tensor:
        if not self.stored:
            return super().noise(seed)
        return torch.stack([self.stored[value] for value in seed.tolist()])
