"""Mix-and-match: real latents under the noise and prompt of another pair count as fake (paper, section 3.3)."""

import torch
from torch import Tensor


def neighbours(latent: Tensor) -> Tensor:
    """The batch with samples 2k and 2k + 1 exchanged: (N, ...), N even."""
    return latent[torch.arange(len(latent), device=latent.device) ^ 1]


def mismatched(batch: int, share: float, device: torch.device | None = None) -> Tensor:
    """Rows that `mix_and_match` replaces: (batch,) bool, true in round(batch * share) evenly spaced rows.

    Args:
        batch: rows of the batch.
        share: in [0, 1).
        device: device of the result.
    """
    steps = torch.arange(batch + 1, device=device, dtype=torch.float64) * share
    return steps.add(0.5).floor().diff() > 0


def mix_and_match(generated: Tensor, other: Tensor, replaced: Tensor) -> Tensor:
    """The fake samples of a discriminator step: generated latents, some replaced by real ones of another pair.

    A real latent under the noise and prompt of its neighbour is sharp but wrong: only z and c show that it is fake.

    Args:
        generated: latents of the student, (N, C, H, W).
        other: real latents of other pairs, (N, C, H, W).
        replaced: (N,) bool.

    Returns:
        (N, C, H, W)
    """
    return torch.where(replaced[:, None, None, None], other, generated)
