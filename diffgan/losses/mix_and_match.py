"""Mix-and-match: real latents under the noise or text of another pair count as fake (paper, section 3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffgan.training.transfer import to_device

GENERATED, TEXT, NOISE, LATENT = range(4)  # kinds of fake samples: see `fake_kinds`
NAMES = {TEXT: "mismatched_text", NOISE: "mismatched_noise", LATENT: "mismatched_latent"}


def neighbours(rows: Tensor) -> Tensor:
    """The batch with samples 2k and 2k + 1 exchanged: (N, ...), N even."""
    return rows[torch.arange(len(rows), device=rows.device) ^ 1]


def fake_kinds(first: int, rows: int, share: float, mismatches: Sequence[int]) -> Tensor:
    """What the fake samples of a discriminator step are.

    A mismatched sample is sharp but wrong: only z and c show that it is fake.

        GENERATED   G's latent under its own noise and text
        TEXT        the real latent and its noise under the text of another pair
        NOISE       the real latent and its text under the noise of another pair
        LATENT      the real latent of another pair under this noise and text

    Rows are counted over the whole training, so the kinds depend neither on the batch size nor on the number of
    processes: mismatched rows are evenly spaced, and their kinds alternate.

    Args:
        first: number of the first row, counted over all processes and since the start of the training.
        rows: number of rows.
        share: of the mismatched rows, in [0, 1).
        mismatches: kinds of mismatched rows, in the order in which they alternate.

    Returns:
        (rows,) int64, on the CPU.
    """
    with torch.device("cpu"):
        boundaries = torch.arange(first, first + rows + 1, dtype=torch.float64)
        mismatched_before = boundaries.mul(share).add(0.5).floor().long()  # (rows + 1,)
        kinds = torch.tensor(mismatches)[mismatched_before[:-1] % len(mismatches)]
        return torch.where(mismatched_before.diff() > 0, kinds, GENERATED)


def select(kinds: Tensor, chosen: int, these: Tensor, others: Tensor) -> Tensor:
    """Rows of `these` where the kind is `chosen`, and of `others` elsewhere.

    Args:
        kinds: of each row, (N,).
        chosen: a kind.
        these, others: (N, ...) on one device.
    """
    mask = to_device(kinds == chosen, these.device)
    return torch.where(mask.view(-1, *[1] * (these.dim() - 1)), these, others)
