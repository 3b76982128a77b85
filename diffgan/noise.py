"""Seed -> z: the only place where the initial noise of images is drawn."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from diffgan.errors import UserError

VALUES_PER_THREAD = 2**17  # starting a thread takes longer than drawing fewer
SEEDS = 2**32  # torch's CPU generator keeps the low 32 bits of a seed: larger ones would repeat smaller ones


def require_seeds(name: str, first: int, count: int = 1) -> None:
    """Raises UserError unless `count` consecutive seeds from `first` on lie in [0, 2^32).

    name: of the first seed's option or argument.
    """
    if not 0 <= first <= SEEDS - count:
        seeds = "is no seed" if count == 1 else f"the seeds of {count} images from it on are not all"
        raise UserError(f"{name}: {first}: {seeds} in [0, 2^32)")


def draw_noise(seeds: Sequence[int] | Tensor, shape: tuple[int, int, int]) -> Tensor:
    """z ~ N(0, I). Row i depends only on seeds[i] and `shape`.

    Args:
        seeds: N integers in [0, 2^32).
        shape: (C, H, W) of one latent.

    Returns:
        (N, C, H, W) float32 on the CPU, whatever the device of `seeds`.

    Raises:
        ValueError: a seed is outside [0, 2^32).
    """
    seeds = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed {seed}: noise is drawn from seeds in [0, 2^32)")
    with torch.inference_mode(False):  # threads are not in inference mode and must not write to its tensors
        noise = torch.empty(len(seeds), *shape)
    threads = min(torch.get_num_threads(), -(-noise.numel() // VALUES_PER_THREAD)) or 1

    def draw(first: int) -> None:
        for row, seed in zip(noise[first::threads], seeds[first::threads], strict=True):
            torch.randn(shape, generator=torch.Generator().manual_seed(seed), out=row)

    if threads == 1:
        draw(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw, range(threads)))
    return noise
