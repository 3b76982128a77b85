"""One batch of noise-latent pairs."""

from typing import NamedTuple

from torch import Tensor

from diffgan.conditioning import Conditioning


class PairBatch(NamedTuple):
    """N noise-latent pairs.

    seed: (N,) int64, from which `noise` is drawn.  noise: (N, C, H, W) float32, N(0, I).  prompt: N strings.
    latent: (N, C, H, W) float32, the teacher's ODE solution from `noise` under `prompt`.
    conditioning: N rows, the teacher's text encoding of `prompt`; None unless it was read from cached embeddings.
    """

    seed: Tensor
    noise: Tensor
    prompt: list[str]
    latent: Tensor
    conditioning: Conditioning | None = None
