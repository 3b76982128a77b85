"""Distances between two images, given as features, in float64."""

import torch.nn.functional as F
from torch import Tensor

from diffgan.evaluation.features.base import DREAMSIM_FEATURES


def image_distances(a: Tensor, b: Tensor, extractor: str) -> Tensor:
    """Distances between images: one minus the cosine of DreamSim's features, Euclidean of any others.

    Args:
        a, b: features (..., D) whose leading dimensions broadcast.
        extractor: name of the features.

    Returns:
        (...) float64.
    """
    a, b = a.double(), b.double()
    if extractor == DREAMSIM_FEATURES:
        return 1 - F.cosine_similarity(a, b, dim=-1)
    return (a - b).norm(dim=-1)
