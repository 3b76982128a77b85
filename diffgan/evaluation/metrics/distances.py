"""Distances between two sets of images, given as features: Fréchet and kernel, in float64."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffgan.errors import UserError

KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 50, 250, 0


class FeatureStatistics(NamedTuple):
    """The Gaussian that stands for a set of features, in float64.

    mean: (D,).  root: (D, r), root @ root.T is the unbiased covariance; r is the smaller of images and features.
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Features (N, D), N >= 2."""
        if len(features) < 2:
            raise UserError(f"a covariance needs two or more images, there are {len(features)}")
        features = features.double()
        mean = features.mean(0)
        triangle = torch.linalg.qr(features - mean, mode="r").R  # (r, D), triangle.T @ triangle = (N - 1) covariance
        return cls(mean, triangle.T / (len(features) - 1) ** 0.5)

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor) -> "FeatureStatistics":
        """mean: (D,).  covariance: (D, D), symmetric; what rounding made negative of its eigenvalues counts as 0."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(mean.double(), vectors * values.clamp_min(0).sqrt())


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), eq. 6 of Heusel et al., arXiv 1706.08500.

    With C_a = A A^T and C_b = B B^T, C_a C_b has the squared singular values of A^T B as eigenvalues, so the trace of
    its root is their sum: exact for covariances of low rank too, where the root of a general matrix is not.
    """
    shared = torch.linalg.svdvals(a.root.T @ b.root).sum()
    distance = (a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * shared
    return distance.clamp_min(0).item()


def polynomial_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared MMD of features (N, D) and (M, D) under k(a, b) = (a.b / D + 1)^3: () float64."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_off_diagonal(gram: Tensor) -> Tensor:
        return (gram.sum() - gram.trace()) / (len(gram) * (len(gram) - 1))

    x, y = x.double(), y.double()
    return mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """KID: mean of `polynomial_mmd` over 50 random subsets of 250 (fewer if a set is smaller), Binkowski et al. 2018.

    Unbiased, so it can be slightly negative; unlike the Fréchet distance it does not depend on the number of images.
    """
    size, draw = min(KID_SUBSET_SIZE, len(x), len(y)), np.random.Generator(np.random.Philox(KID_SEED))
    if size < 2:
        raise UserError(f"a kernel distance needs two or more images a set, there are {len(x)} and {len(y)}")
    subsets = [[draw.choice(len(features), size, replace=False) for features in (x, y)] for _ in range(KID_SUBSETS)]
    return torch.stack([polynomial_mmd(x[i], y[j]) for i, j in subsets]).mean().item()
