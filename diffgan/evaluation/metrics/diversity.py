"""How much the images of one prompt differ from each other, and what share of all differences that is."""

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


def share_within_prompts(latents: Tensor) -> float:
    """E[Var(x | c)] / Var(x): the share of the variance that the noise decides, not the prompt; in [0, 1].

    Args:
        latents: (P, k, ...) of k >= 2 images of each of P >= 2 prompts.
    """
    latents = latents.double().flatten(2)
    within = latents.var(1).mean(0).sum()
    between = latents.mean(1).var(0).sum() - within / latents.shape[1]  # less what k images leave of the noise
    return (within / (within + between.clamp_min(0))).item()
