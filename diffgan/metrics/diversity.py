"""How much the images of one prompt differ from each other."""

import torch
from torch import Tensor

from diffgan.errors import UserError


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean Euclidean distance between the images of a prompt, averaged over prompts.

    Args:
        features: (P, k, D) of k >= 2 images of each of P prompts.
    """
    prompts, images, _ = features.shape
    if images < 2:
        raise UserError(f"diversity needs two or more images a prompt, there are {images}")
    distances = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return (distances.sum() / (prompts * images * (images - 1))).item()
