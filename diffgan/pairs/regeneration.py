"""Making batches of a pair set again, as they were made, and how far their latents may deviate.

On the same kind of device, with the same libraries, a batch has the same bits. Elsewhere sums round differently. The
limits below are relative to the rms of the latents. What was measured, after 20 steps:

    float16   an H100 at guidance 8, against float32: rms 0.0026
    bfloat16  the same: rms 0.0225, largest value 0.42; glyphs on a CPU, 16 pairs at guidance 3 and 8: rms 0.014 and
              0.020, of the worst pair 0.038, largest value 0.22
    float32   glyphs on a CPU, batches of 4 against 16: rms 2e-6, of the worst pair 4e-6, largest value 2e-5; with two
              threads no difference

The limits are several times these: they are of a single pair, and two rounded latents differ by more than one of them
and its exact value. A pair of another noise or prompt deviates by about 1. Convolutions of float32 on NVIDIA's GPUs
are TF32, which has as many bits as float16.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffgan.pairs.devices import CUDA_ONLY, device_kind, this_device
from diffgan.pairs.generation import PairGeneration, PromptBatch, generate_pairs
from diffgan.pairs.manifest import Manifest, versions
from diffgan.pairs.opening import require_teacher
from diffgan.teachers.solvers import named_in


class StoredBatch(NamedTuple):
    """Pairs of a set that were solved together.

    file: of their shard.  seed: (N,).  prompt: N strings.  noise_head: (N, 4).  latent: (N, C, H, W) float16.
    noise: (N, C, H, W) float32, if the set stores it.  made: how the shard's batches were made, each way once (device,
    versions, compile); empty if that is unknown.
    """

    file: str
    seed: Tensor
    prompt: list[str]
    noise_head: Tensor
    latent: Tensor
    noise: Tensor | None
    made: list[dict[str, Any]]

    @property
    def is_reproducible(self) -> bool:
        """Whether the batch was made on this kind of device with these versions, so that its bits can be expected."""
        here = {"device": device_kind(this_device()), "versions": versions()}
        return len(self.made) == 1 and all(self.made[0].get(name) == value for name, value in here.items())

    @property
    def is_compiled(self) -> bool:
        """Whether it must be made again by a compiled network to have the same bits."""
        return self.is_reproducible and self.made[0]["compile"]


class Limits(NamedTuple):
    """How far a latent may deviate, relative to the rms of the latents.  rms: of one pair.  largest: of one value."""

    rms: float
    largest: float


STORAGE = 2**-11  # of every value: float16 on disk
FLOAT32, TF32, FLOAT16, BFLOAT16 = Limits(0.001, 0.02), Limits(0.02, 0.4), Limits(0.02, 0.4), Limits(0.15, 2.0)


def limits_of(manifest: Manifest, batches: list[StoredBatch]) -> Limits:
    """The limits for batches that were made elsewhere, by their precision and devices."""
    precision = manifest.precision.split("-")[0]
    if precision.startswith("bf16"):
        return BFLOAT16
    if precision == "16":
        return FLOAT16
    kinds = [made["device"] for batch in batches for made in batch.made or [{"device": manifest.device}]]
    on_cpus = this_device().type == "cpu" and all(kind.startswith("CPU") for kind in kinds)
    return FLOAT32 if on_cpus else TF32


def make_again(manifest: Manifest, batches: list[StoredBatch], teacher: str) -> list[Tensor]:
    """The latents of each batch, (N, C, H, W) float32 on the CPU.

    A set in float16 is made again in float32 where there is no GPU.

    Args:
        teacher: path of the set's teacher.

    Raises:
        UserError: it cannot be loaded, or is another teacher.
    """
    latents: dict[int, Tensor] = {}
    for compiled in (False, True):
        chosen = [i for i, batch in enumerate(batches) if batch.is_compiled == compiled]
        if chosen:
            made = _made_again(manifest, [batches[i] for i in chosen], teacher, compiled)
            latents |= dict(zip(chosen, made, strict=True))
    return [latents[i] for i in range(len(batches))]


def _made_again(manifest: Manifest, batches: list[StoredBatch], teacher: str, compiled: bool) -> list[Tensor]:
    solver = named_in(manifest.scheduler)
    module = _StoredNoiseGeneration(
        teacher, manifest.steps, manifest.guidance, solver, compiled, size=manifest.image_size
    )
    for batch in batches:
        if batch.noise is not None:
            module.stored |= dict(zip(batch.seed.tolist(), batch.noise, strict=True))
    module.setup("predict")
    require_teacher(manifest, module.teacher, teacher)
    on_cpu = manifest.precision == CUDA_ONLY and this_device().type == "cpu"
    precision = "32-true" if on_cpu else manifest.precision
    pairs = generate_pairs(module, [PromptBatch(batch.seed, batch.prompt) for batch in batches], precision)
    return [batch.latent.float().cpu() for batch in pairs]


class _StoredNoiseGeneration(PairGeneration):
    """Solves from stored noise if there is any; in the batch it would be rounded to the trainer's precision."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.stored: dict[int, Tensor] = {}  # seed -> (C, H, W)

    def noise(self, seed: Tensor) -> Tensor:
        if not self.stored:
            return super().noise(seed)
        return torch.stack([self.stored[value] for value in seed.tolist()])


# ---- comparing ----


class Deviation(NamedTuple):
    """How far latents that were made again are from those on disk.

    seed: (N,).  rms, largest: (N,), of each pair's difference and its largest value, as far as storage does not explain
    them; relative to the rms of the latents.  differs: (N,) bool, whether any bit of the pair in float16 does.
    """

    seed: Tensor
    rms: Tensor
    largest: Tensor
    differs: Tensor


def deviation(batches: list[StoredBatch], latents: list[Tensor]) -> Deviation:
    """Compare batches on disk with their latents made again."""
    stored, made = torch.cat([batch.latent for batch in batches]), torch.cat(latents)
    scale = stored.double().square().mean().sqrt().clamp_min(1e-12)
    differs = (made.half().view(torch.int16) != stored.view(torch.int16)).flatten(1).any(1)
    excess = ((made.double() - stored.double()).abs() - STORAGE * stored.double().abs()).clamp_min(0).flatten(1)
    return Deviation(
        torch.cat([batch.seed for batch in batches]),
        excess.square().mean(1).sqrt() / scale,
        excess.amax(1) / scale,
        differs,
    )
