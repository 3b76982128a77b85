"""Mix-and-match: real latents under another pair's noise and prompt count as fake (paper, section 3.3)."""

import torch
from torch import Tensor


def neighbours(latent: Tensor) -> Tensor:
    """Samples 2k and 2k + 1 of a batch change places: (N, ...), N even."""
    return latent[torch.arange(len(latent), device=latent.device) ^ 1]


def mismatched(batch: int, share: float, device: torch.device | None = None) -> Tensor:
    """Where `mix_and_match` replaces a sample: (batch,) bool, true in round(batch share) evenly spaced rows."""
    steps = torch.arange(batch + 1, device=device, dtype=torch.float64) * share
    return steps.add(0.5).floor().diff() > 0


def mix_and_match(generated: Tensor, other: Tensor, replaced: Tensor) -> Tensor:
    """The fakes shown to D: some generated latents give way to real ones that belong to another pair.

    A real latent under the noise and prompt of its neighbour is sharp but wrong: D has to read z and c to see it.

    Args:
        generated, other: (N, C, H, W), of the student and of the other pairs.
        replaced: (N,) bool.
    """
    return torch.where(replaced[:, None, None, None], other, generated)
