"""Micro-batches: the equal parts in which a process computes its share of a batch, one after the other."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.losses import mix_and_match


class Samples(NamedTuple):
    """N inputs of D.

    latent, noise: x and z, (N, C, H, W).  conditioning: c, N rows.
    """

    latent: Tensor
    noise: Tensor
    conditioning: Conditioning

    def map(self, change: Callable[[Tensor], Tensor]) -> "Samples":
        """Apply `change`, such as a selection of rows, to every tensor."""
        return Samples(change(self.latent), change(self.noise), self.conditioning.map(change))


class MicroBatch(NamedTuple):
    """N pairs, and what D's fake samples are made of.

    pairs: the pairs: x, z, c.
    mismatched: the pairs with the latent, noise or text of another pair in mismatched rows.
    kinds: of the fake samples, (N,) int64 on the CPU, see `mix_and_match.fake_kinds`.
    input_noise: added to D's real and generated latents, (N, C, H, W), or zeros (N, 1, 1, 1).
    """

    pairs: Samples
    mismatched: Samples
    kinds: Tensor
    input_noise: Tensor

    def real(self) -> Samples:
        """The real samples of a discriminator step."""
        return self.pairs._replace(latent=self.pairs.latent + self.input_noise)

    def fake(self, generated: Tensor) -> Samples:
        """The fake samples of a discriminator step: generated and mismatched ones.

        generated: x^ of every row, (N, C, H, W); mismatched rows do not use it.
        """
        latent = mix_and_match.select(self.kinds, mix_and_match.GENERATED, generated, self.mismatched.latent)
        return self.mismatched._replace(latent=latent + self.input_noise)


def mismatch(pairs: Samples, kinds: Tensor) -> Samples:
    """The pairs with the latent, noise or text of their neighbours in the rows of that kind.

    Args:
        pairs: N rows; N is even if there are mismatched rows.
        kinds: (N,), see `mix_and_match.fake_kinds`.
    """
    if not kinds.any():
        return pairs

    def neighbours_where(kind: int) -> Callable[[Tensor], Tensor]:
        return lambda rows: mix_and_match.select(kinds, kind, mix_and_match.neighbours(rows), rows)

    latent = neighbours_where(mix_and_match.LATENT)(pairs.latent)
    noise = neighbours_where(mix_and_match.NOISE)(pairs.noise)
    return Samples(latent, noise, pairs.conditioning.map(neighbours_where(mix_and_match.TEXT)))


def split(batch: MicroBatch, count: int) -> list[MicroBatch]:
    """`count` micro-batches of contiguous rows; `count` divides the rows of the batch."""

    micro_batches = []
    for i in range(count):
        rows = lambda tensor, i=i: tensor.chunk(count)[i]  # noqa: E731
        pairs, mismatched = batch.pairs.map(rows), batch.mismatched.map(rows)
        micro_batches.append(MicroBatch(pairs, mismatched, rows(batch.kinds), rows(batch.input_noise)))
    return micro_batches


def take(micro_batches: Sequence[MicroBatch], rows: list[int]) -> Samples:
    """Pairs of several micro-batches of equal size, in the order of `rows`."""
    size = len(micro_batches[0].kinds)
    taken = [micro_batches[row // size].pairs.map(lambda tensor, i=row % size: tensor[i : i + 1]) for row in rows]
    latents, noises, conditionings = zip(*taken, strict=True)
    return Samples(torch.cat(latents), torch.cat(noises), Conditioning.cat(conditionings))


def check_micro_batches(pairs_per_process: int, count: int) -> None:
    """Raises UserError if a process's pairs do not divide into `count` equal micro-batches."""
    if count < 1 or pairs_per_process % count:
        raise UserError(
            f"accumulate: {pairs_per_process} pairs per process do not divide into {count} equal micro-batches; "
            "choose another accumulate or batch_size"
        )
