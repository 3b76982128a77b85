"""Two-alternative forced choice (2AFC): which of two distorted versions of a reference is the closer one."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TwoAFCBatch(NamedTuple):
    """A batch of 2AFC triplets, as images or as latents.

    reference, first, second: (N, C, H, W).
    preference: (N,) share of the answers, in [0, 1], that chose `second` as the closer one.
    family: N names of the kind of distortion.
    """

    reference: Tensor
    first: Tensor
    second: Tensor
    preference: Tensor
    family: list[str]


def two_afc_score(first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
    """2AFC score of a distance: the share of the answers it agrees with (Zhang et al. 2018, section 4.1).

    With p the preference, the score is p if the distance chooses `second`, 1 - p if it chooses `first`, and 1/2 for a
    tie.

    Args:
        first, second: (N,) distances of the two alternatives from the reference.
        preference: (N,) share in [0, 1] that chose the second as the closer one.

    Returns:
        (N,) in [0, 1].
    """
    chooses_second = (first > second).to(preference) + 0.5 * (first == second).to(preference)
    return chooses_second * preference + (1 - chooses_second) * (1 - preference)


class RankingLoss(nn.Module):
    """Cross-entropy of the preference predicted from both distances (the ranking loss of LPIPS, Zhang et al. 2018).

    A network with two hidden layers of 32 units predicts the preference from d0, d1, d0 - d1, d0 / (d1 + 0.1) and
    d1 / (d0 + 0.1).
    """

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(5, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)]
        self.network = nn.Sequential(*layers)

    def forward(self, first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
        """first, second, preference: (N,), as in `two_afc_score` -> () loss."""
        features = [first, second, first - second, first / (second + 0.1), second / (first + 0.1)]
        logit = self.network(torch.stack(features, dim=1)).squeeze(1)
        return F.binary_cross_entropy_with_logits(logit, preference)
