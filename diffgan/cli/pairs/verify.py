"""The verb `pairs verify`: check every byte of a pair set, and make some of its batches again."""

import random
from itertools import pairwise

import torch
from torch import Tensor

from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.pairs.devices import device_kind, this_device
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.opening import teacher_of
from diffgan.pairs.regeneration import Deviation, StoredBatch, deviation, limits_of, make_again
from diffgan.pairs.shard_format import NOISE_HEAD, NOISE_TOLERANCE, batches_of, read_shard
from diffgan.storage.open import open_store
from diffgan.storage.store import Store

DELETE = "delete it and run `diffgan predict` again"


def verify(folder: str, sample: int = 64, teacher: str | None = None, tolerance: float | None = None) -> None:
    """Check a pair set: every shard's header, seeds, prompts, values and digest, and a sample of pairs made again.

    Pairs are made again in the batches in which they were made. On the same kind of device, with the same libraries,
    every bit must be the same; elsewhere latents may deviate as far as rounding explains.

    Args:
        folder: of the pair set: a path or URL.
        sample: at least so many pairs are made again, in whole batches chosen at random, the same ones every time; 0
            makes none.
        teacher: the set's teacher; by default the one in the manifest, if that is a directory here or "glyphs".
        tolerance: largest allowed deviation of a latent, wherever it was made.
    """
    if sample < 0:
        raise UserError(f"--sample: {sample} must be at least 0")
    if tolerance is not None and not tolerance >= 0:
        raise UserError(f"--tolerance: {tolerance} must be at least 0")
    store = open_store(folder)
    manifest = Manifest.read(store)
    path = teacher_of(manifest, teacher, folder) if sample else None
    batches, undigested = _check_shards(store, manifest, _chosen(manifest, sample))
    checked = "headers, seeds, prompts, values" + ("" if undigested else ", digests")
    print(f"{folder}: {manifest.shards} shards, {manifest.pairs} pairs: {checked} are right")
    if undigested:
        print(f"{folder}: {undigested} shards of an older version have no digest: their bytes were not compared")
    for batch in batches:
        _check_noise(batch)
    if batches:
        latents = make_again(manifest, batches, path)
        for line in _compare(manifest, batches, latents, tolerance):
            print(f"{folder}: {line}")


def _chosen(manifest: Manifest, sample: int) -> list[range]:
    """At least `sample` pairs, in whole batches of the manifest's size, chosen at random."""
    per_shard = -(-manifest.shard_size // manifest.batch_size)
    last = -(-len(manifest.span(manifest.shards - 1)) // manifest.batch_size)
    batches = range((manifest.shards - 1) * per_shard + last)
    chosen, pairs = [], 0
    for i in random.Random(0).sample(batches, min(sample, len(batches))):
        if pairs >= sample:
            break
        shard, position = divmod(i, per_shard)
        start = position * manifest.batch_size
        chosen.append(manifest.span(shard)[start : start + manifest.batch_size])
        pairs += len(chosen[-1])
    return chosen


# ---- files ----


def _check_shards(store: Store, manifest: Manifest, chosen: list[range]) -> tuple[list[StoredBatch], int]:
    """The batches that hold the chosen pairs, and how many shards have no digest.

    Raises:
        UserError: names the first shard that is missing or damaged.
    """
    manifest.require_complete(store)
    batches, undigested = [], 0
    for shard in range(manifest.shards):
        file, span = store.path(manifest.name(shard)), manifest.span(shard)
        header, tensors = read_shard(store, manifest, shard, compare=True)
        undigested += "digest" not in header
        for numbers in batches_of(span, header.get("batch_size", manifest.batch_size)):
            if any(numbers.start < other.stop and other.start < numbers.stop for other in chosen):
                rows = slice(numbers.start - span.start, numbers.stop - span.start)
                batches.append(_stored_batch(file, header, tensors, rows))
    return batches, undigested


def _stored_batch(file: str, header: dict, tensors: dict[str, Tensor], rows: slice) -> StoredBatch:
    """Rows of a shard, copied, so that the shard can be freed."""
    ends = tensors["prompt_offsets"][rows.start : rows.stop + 1].tolist()
    text = tensors["prompt_bytes"].numpy()
    prompts = [text[begin:end].tobytes().decode() for begin, end in pairwise(ends)]
    seed, noise_head, latent = (tensors[name][rows].clone() for name in ("seed", "noise_head", "latent"))
    noise = tensors["noise"][rows].clone() if "noise" in tensors else None
    return StoredBatch(file, seed, prompts, noise_head, latent, noise, header.get("made", []))


def _check_noise(batch: StoredBatch) -> None:
    """Raises: UserError if noise that is not stored is drawn differently here."""
    if batch.noise is not None:
        return
    noise_head = draw_noise(batch.seed.tolist(), tuple(batch.latent.shape[1:])).flatten(1)[:, :NOISE_HEAD]
    differs = ~((noise_head - batch.noise_head).abs().amax(1) <= NOISE_TOLERANCE)
    if differs.any():
        seed = batch.seed[differs][0].item()
        raise UserError(f"{batch.file}: seed {seed} draws other noise here than the set was made from")


# ---- latents made again ----


def _compare(
    manifest: Manifest, batches: list[StoredBatch], latents: list[Tensor], tolerance: float | None
) -> list[str]:
    """What was compared and how far the latents deviate, in words, for both kinds of batches.

    Raises:
        UserError: a latent deviates by more than is allowed.
    """
    if tolerance is not None:
        return [_within_tolerance(batches, latents, tolerance)]
    lines = []
    for exact in (True, False):
        chosen = [i for i, batch in enumerate(batches) if batch.is_reproducible == exact]
        if chosen:
            compare = _exact if exact else _within_limits
            lines.append(compare(manifest, [batches[i] for i in chosen], [latents[i] for i in chosen]))
    return lines


def _exact(manifest: Manifest, batches: list[StoredBatch], latents: list[Tensor]) -> str:
    """Every bit must be the same."""
    found = deviation(batches, latents)
    if found.differs.any():
        i = int(found.largest.where(found.differs, -1).argmax())
        expected = "its bits should be the same on this device with these libraries; --tolerance sets a limit"
        raise UserError(_refusal(batches, found, i, latents, expected))
    return f"{_counts(batches)} made again on the same kind of device with the same libraries: all bits are the same"


def _within_limits(manifest: Manifest, batches: list[StoredBatch], latents: list[Tensor]) -> str:
    """Every latent must be as near as rounding explains."""
    found, limits = deviation(batches, latents), limits_of(manifest, batches)
    for values, limit, what in ((found.rms, limits.rms, "rms"), (found.largest, limits.largest, "one value")):
        if not (values <= limit).all():
            i = int(values.nan_to_num(torch.inf).argmax())
            expected = f"{what} {values[i]:.2g} of the latents' rms, allowed {limit:.2g}"
            raise UserError(_refusal(batches, found, i, latents, expected))
    return (
        f"{_counts(batches)} made again{_elsewhere(batches)}: {int((~found.differs).sum())} have the same bits; they "
        f"deviate by at most {found.rms.max():.2g} rms, allowed {limits.rms:.2g}, and {found.largest.max():.2g} in one "
        f"value, allowed {limits.largest:.2g}, of the latents' rms"
    )


def _within_tolerance(batches: list[StoredBatch], latents: list[Tensor], tolerance: float) -> str:
    """Every latent must be as near as --tolerance says."""
    largest = _largest(batches, latents)
    comparison = f"{largest.max():.2g} of latents up to {_range(batches):.2g}, allowed {tolerance:.2g}"
    if not (largest <= tolerance).all():
        found, i = deviation(batches, latents), int(largest.argmax())
        raise UserError(_refusal(batches, found, i, latents, f"allowed {tolerance:.2g}"))
    return f"{_counts(batches)} made again deviate by at most {comparison}"


def _largest(batches: list[StoredBatch], latents: list[Tensor]) -> Tensor:
    """(N,): the largest deviation of each pair's latent."""
    stored = torch.cat([batch.latent for batch in batches]).float()
    return (torch.cat(latents) - stored).abs().flatten(1).amax(1)


def _range(batches: list[StoredBatch]) -> float:
    return max(batch.latent.abs().max().item() for batch in batches)


def _counts(batches: list[StoredBatch]) -> str:
    pairs = sum(len(batch.seed) for batch in batches)
    return f"{pairs} pairs in {len(batches)} batch{'es' * (len(batches) > 1)}"


def _elsewhere(batches: list[StoredBatch]) -> str:
    """Where the batches were made, if that is known, and where they were made again."""
    made = sorted({made["device"] for batch in batches for made in batch.made})
    here = device_kind(this_device())
    if not made:
        return f" on {here}; what made them is unknown"
    libraries = " with other libraries" if made == [here] else ""
    return f" on {here}{libraries}; they were made on {' and '.join(made)}"


def _refusal(batches: list[StoredBatch], found: Deviation, i: int, latents: list[Tensor], expected: str) -> str:
    """The line about the pair at position i."""
    file = [batch.file for batch in batches for _ in batch.seed][i]
    by = _largest(batches, latents)[i]
    return f"{file}: made again, seed {found.seed[i]} deviates by {by:.2g} ({expected}); {DELETE}"
