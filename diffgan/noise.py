"""Seed -> z: the only place where noise is drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

SEEDS = 2**32  # torch's CPU generator keeps the low 32 bits of a seed: larger ones would repeat smaller ones


def draw_noise(seeds: Sequence[int] | Tensor, shape: tuple[int, int, int]) -> Tensor:
    """z ~ N(0, I), row i a function of seeds[i] and `shape` alone.

    Args:
        seeds: N integers in [0, 2^32).
        shape: (C, H, W) of one latent.

    Returns:
        (N, C, H, W) float32 on the CPU, whatever the device of `seeds`.

    Raises:
        ValueError: a seed is outside [0, 2^32).
    """
    seeds = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    noise = torch.empty(len(seeds), *shape)
    for row, seed in zip(noise, seeds, strict=True):
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed {seed}: noise is drawn from seeds in [0, 2^32)")
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), out=row)
    return noise
