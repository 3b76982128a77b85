"""Two-alternative forced choice: a reference, two distorted versions, and which of them judges found closer."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Judgements(NamedTuple):
    """reference, first, second: (N, C, H, W); judge: (N,) share in [0, 1] that found `second` closer; family: N str."""

    reference: Tensor
    first: Tensor
    second: Tensor
    judge: Tensor
    family: list[str]


def two_afc(first: Tensor, second: Tensor, judge: Tensor) -> Tensor:
    """Share of the judges that a distance agrees with; a tie agrees with half (Zhang et al. 2018, section 4.1).

    Args:
        first, second: (N,) distances of the two alternatives from the reference.
        judge: (N,) share that found the second closer.

    Returns:
        (N,) in [0, 1].
    """
    chosen = (first > second).to(judge) + 0.5 * (first == second).to(judge)
    return chosen * judge + (1 - chosen) * (1 - judge)


class RankingLoss(nn.Module):
    """Cross-entropy of the judges' share under a small network that reads both distances (LPIPS's ranking loss).

    The network sees d0, d1, d0 - d1, d0 / (d1 + 0.1), d1 / (d0 + 0.1) and has two hidden layers of 32.
    """

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(5, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)]
        self.network = nn.Sequential(*layers)

    def forward(self, first: Tensor, second: Tensor, judge: Tensor) -> Tensor:
        """first, second, judge: (N,) as in `two_afc` -> () loss."""
        seen = [first, second, first - second, first / (second + 0.1), second / (first + 0.1)]
        logit = self.network(torch.stack(seen, dim=1)).squeeze(1)
        return F.binary_cross_entropy_with_logits(logit, judge)
