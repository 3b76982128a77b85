"""Micro-batches: the equal parts in which a process computes its share of a batch, one after the other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.losses import mix_and_match


class MicroBatch(NamedTuple):
    """N pairs, and the real latents of other pairs that mix-and-match puts in their place.

    noise: z, (N, C, H, W).  latent: x, the teacher's latent, (N, C, H, W).  other: x', a real latent of another pair,
    (N, C, H, W).  replaced: (N,) bool, rows whose fake sample is x'.  conditioning: c, N rows.
    """

    noise: Tensor
    latent: Tensor
    other: Tensor
    replaced: Tensor
    conditioning: Conditioning

    def take(self, rows: list[int]) -> "MicroBatch":
        """Some of the rows."""
        noise, latent, other, replaced = (tensor[rows] for tensor in self[:4])
        return MicroBatch(noise, latent, other, replaced, self.conditioning.map(lambda tensor: tensor[rows]))


def with_mismatches(noise: Tensor, latent: Tensor, conditioning: Conditioning, mismatch_share: float) -> MicroBatch:
    """A batch and the rows of it that mix-and-match replaces.

    Args:
        noise, latent: (N, C, H, W); N is even if `mismatch_share` is above 0.
        conditioning: N rows.
        mismatch_share: share of the rows whose fake sample is replaced, in [0, 1).
    """
    other = mix_and_match.neighbours(latent) if mismatch_share else latent
    replaced = mix_and_match.mismatched(len(latent), mismatch_share, latent.device)
    return MicroBatch(noise, latent, other, replaced, conditioning)


def split(batch: MicroBatch, count: int) -> list[MicroBatch]:
    """`count` micro-batches of contiguous rows; `count` divides the rows of the batch."""
    tensors = zip(*(tensor.chunk(count) for tensor in batch[:4]), strict=True)
    conditionings = [batch.conditioning.map(lambda tensor, i=i: tensor.chunk(count)[i]) for i in range(count)]
    return [MicroBatch(*rows, conditioning) for rows, conditioning in zip(tensors, conditionings, strict=True)]


def join(micro_batches: Sequence[MicroBatch]) -> MicroBatch:
    """The inverse of `split`."""
    noise, latent, other, replaced, conditionings = zip(*micro_batches, strict=True)
    tensors = (torch.cat(tensors) for tensors in (noise, latent, other, replaced))
    return MicroBatch(*tensors, Conditioning.cat(conditionings))


def check_micro_batches(pairs_per_process: int, count: int) -> None:
    """Raises UserError if a process's pairs do not divide into `count` equal micro-batches."""
    if count < 1 or pairs_per_process % count:
        raise UserError(
            f"accumulate: {pairs_per_process} pairs per process do not divide into {count} equal micro-batches; "
            "choose another accumulate or batch_size"
        )
