"""One batch of noise-latent pairs."""

from typing import NamedTuple

from torch import Tensor

from diffgan.conditioning import Conditioning


class PairBatch(NamedTuple):
    """N pairs on the trajectories of a teacher.

    seed: (N,) int64.  noise: (N, C, H, W) float32, N(0, I), drawn from `seed`.  prompt: N str.
    latent: (N, C, H, W) float32, the teacher's solution from `noise` under `prompt`.
    conditioning: N rows that the teacher's text encoder made of `prompt`, where they were cached.
    """

    seed: Tensor
    noise: Tensor
    prompt: list[str]
    latent: Tensor
    conditioning: Conditioning | None = None
